//! The whole mesh as one MCP server.
//!
//! ```text
//! tools/*            tools      management tools, and svc__<service>__<tool> of everything that may be called (roster, passing)
//! prompts/*          skills     the mesh's skills, as prompts,
//! resources/*        skills     as skill:// resources and by the skills extension
//! events, new link   keeper     keep the lists true, and answer for what this process lends (lending)
//! ```
//!
//! Here: the server as a whole. Not here: eras (`front`), the link (`client`), reading folders and repositories ([`Hands`]).
//! Invariant: it serves as long as its client wants it, whether or not there is a broker.

mod about;
mod adrift;
mod keeper;
mod lending;
mod passing;
mod roster;
mod skills;
mod splice;
mod tools;
mod words;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Connection, Membership, MeshEntry};
use tokio::sync::watch;
use tokio::time::Instant;
use wire::peer::skills::{ShareSkill, SkillEntry};
use wire::spec::ArchiveFormat;

use crate::front::{self, About, Changes, Eras, Exchange, Offer};
use crate::stdio::Answer;
use lending::Lending;
use roster::Roster;

pub use adrift::adrift;
pub use lending::is_for_agent;

/// As whom, and over which link.
pub struct Member {
    pub connection: Connection,
    /// The folder of `config.json`.
    pub folder: PathBuf,
    pub entry: MeshEntry,
    pub membership: Membership,
}

/// What is done on this machine for a tool, as the command line does it.
#[derive(Clone, Copy)]
pub struct Hands {
    /// A folder, packed, or an archive as it is. The error is a text for people. It may block.
    pub pack: fn(&Path) -> Result<Packed, String>,
    /// A skill from a folder, zip or `SKILL.md`.
    pub skill: fn(SkillSource) -> Reading,
    /// A variable of this process's environment.
    pub variable: fn(&str) -> Option<OsString>,
}

pub struct Packed {
    pub bytes: Vec<u8>,
    pub format: ArchiveFormat,
}

/// A skill that is being read, or a text that says why it can't be.
pub type Reading = Pin<Box<dyn Future<Output = Result<ShareSkill, String>> + Send>>;

/// Where a skill is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkillSource {
    Path(PathBuf),
    Git { url: String, reference: Option<String> },
}

/// A client that lists tools at once waits this long, counted from the start, for the mesh's own.
const FIRST_LIST: Duration = Duration::from_secs(3);

pub struct Mesh {
    member: Member,
    hands: Hands,
    roster: Mutex<Roster>,
    skills: Mutex<Vec<SkillEntry>>,
    lending: Lending,
    changes: watch::Sender<Changes>,
    /// Whether the lists were fetched at least once.
    loaded: watch::Sender<bool>,
    /// Something could not be read.
    has_missed: AtomicBool,
    started: Instant,
}

/// Serves stdin and stdout until the client goes or `stop` is done.
pub async fn run(member: Member, hands: Hands, stop: impl Future<Output = ()>) {
    let mesh = Arc::new(Mesh::new(member, hands));
    let served = front::serve(crate::stdio::stdin(), crate::stdio::stdout(), Arc::clone(&mesh), Eras::Both);
    tokio::select! {
        () = served => {}
        () = mesh.keep() => {}
        () = stop => {}
    }
    mesh.lending.take_back(&mesh.member).await;
    if let Some(mesh) = Arc::into_inner(mesh) {
        mesh.member.connection.close().await;
    }
}

impl Mesh {
    fn new(member: Member, hands: Hands) -> Self {
        Self {
            member,
            hands,
            roster: Mutex::default(),
            skills: Mutex::default(),
            lending: Lending::default(),
            changes: watch::Sender::new(Changes::default()),
            loaded: watch::Sender::new(false),
            has_missed: AtomicBool::new(false),
            started: Instant::now(),
        }
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn skills(&self) -> MutexGuard<'_, Vec<SkillEntry>> {
        self.skills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tools_changed(&self) {
        self.changes.send_modify(|changes| changes.tools += 1);
    }

    fn skills_changed(&self) {
        self.changes.send_modify(|changes| {
            changes.prompts += 1;
            changes.resources += 1;
        });
    }

    /// Until the lists are there, or it has taken long enough: what comes later is told by `list_changed`.
    async fn listed(&self) {
        let mut loaded = self.loaded.subscribe();
        let _ = tokio::time::timeout_at(self.started + FIRST_LIST, loaded.wait_for(|loaded| *loaded)).await;
    }
}

impl Offer for Mesh {
    async fn about(&self) -> About {
        about::mesh()
    }

    async fn handle(&self, exchange: &Exchange) -> Answer {
        let params = exchange.params.as_deref();
        match exchange.method.as_str() {
            "tools/list" => {
                self.listed().await;
                Answer::Result(tools::list(&self.roster()))
            }
            "tools/call" => self.call(exchange).await,
            "prompts/list" => {
                self.listed().await;
                Answer::Result(skills::prompts(&self.skills()))
            }
            "prompts/get" => self.prompt(params).await,
            "resources/list" => {
                self.listed().await;
                Answer::Result(skills::resources(&self.skills()))
            }
            "resources/templates/list" => Answer::Result(skills::templates()),
            "resources/read" => self.read_resource(params).await,
            "skills/list" => {
                self.listed().await;
                Answer::Result(skills::extension_list(&self.skills()))
            }
            "skills/get" => self.extension_get(params).await,
            other => Answer::Error(front::error(-32601, &format!("there is no method `{other}` here"))),
        }
    }

    fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }

    fn is_modern_for(&self, exchange: &Exchange) -> Option<bool> {
        let server = self.destination(exchange)?;
        Some(self.roster().is_modern(&server))
    }
}
