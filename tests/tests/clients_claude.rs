//! The real Claude Code, offline, with the test as its model: hosted services are there, as tools of the mesh and as servers of
//! their own, before and after everything that may happen to them during a session.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;

use serde_json::{Value, json};
use tests::clients::programs::{self, Claude, Entry};
use tests::clients::{Model, Turn};
use tests::peer::PATIENCE;
use tests::person::Person;
use tests::{World, fixture};
use tokio::time::Instant;

/// Deploys the Python fixture in a version. Returns when it serves.
async fn deploy(world: &World, name: &str, version: &str) {
    let folder = fixture::python_folder(&world.folder("python"));
    let version = format!("--args={version}");
    let folder = folder.to_str().unwrap();
    world.owner.ok(["deploy", name, folder, "--mesh-wide", "--args=normal", version.as_str()]).await;
}

fn mesh_entry(who: &Person) -> Entry {
    programs::mesh_entry("claudemesh", who, &[])
}

fn native_entry(who: &Person, service: &str) -> Entry {
    programs::mesh_entry(&format!("mesh-{service}"), who, &["--service", service])
}

/// How Claude Code itself refuses a call.
const NO_SUCH_TOOL: &str = "No such tool available";

/// A session of Claude Code, and the model that drives it.
struct Session {
    claude: Claude,
    model: Model,
}

impl Session {
    async fn start(clients: &Path, home: &Path, entries: &[Entry]) -> (Self, Turn) {
        let model = Model::start().await;
        let mut claude = Claude::start(clients, home, &model, entries);
        claude.user("go").await;
        let turn = model.turn().await;
        (Self { claude, model }, turn)
    }

    /// Calls a tool that must work and say this.
    async fn says(&self, turn: Turn, tool: &str, arguments: Value, text: &str) -> Turn {
        let turn = self.model.call(turn, tool, arguments).await;
        let outcome = turn.outcome();
        assert!(!outcome.is_error && outcome.text == text, "{tool} says `{text}`: {outcome:?}");
        turn
    }

    /// Calls a tool of something that is gone until Claude Code has noticed: it lists again and refuses the call itself, but goes on
    /// naming the tool to the model.
    async fn fails(&self, mut turn: Turn, tool: &str) -> Turn {
        let end = Instant::now() + PATIENCE;
        loop {
            turn = self.model.call(turn, tool, json!({})).await;
            assert!(turn.outcome().is_error, "{tool} fails: {:?}", turn.outcome());
            if turn.outcome().text.contains(NO_SUCH_TOOL) {
                return turn;
            }
            assert!(Instant::now() < end, "{tool} is still listed: {:?}", turn.outcome());
        }
    }

    /// As [`Self::says`], once Claude Code has listed the tool again.
    async fn says_again(&self, mut turn: Turn, tool: &str, arguments: Value, text: &str) -> Turn {
        let end = Instant::now() + PATIENCE;
        loop {
            turn = self.model.call(turn, tool, arguments.clone()).await;
            if !turn.outcome().is_error {
                assert_eq!(turn.outcome().text, text);
                return turn;
            }
            assert!(Instant::now() < end, "{tool} does not come back: {:?}", turn.outcome());
        }
    }

    async fn end(mut self, turn: Turn) {
        turn.say("done");
        assert_eq!(self.claude.turn_ends().await["result"], "done");
        self.claude.end().await;
    }
}

#[tokio::test]
async fn the_stand_in_drives_claude_code_with_a_bare_server() {
    let Some(clients) = programs::folder() else { return };
    let home = tempfile::tempdir().unwrap();
    let entry = Entry::new("everything", programs::everything(&clients));
    let (session, turn) = Session::start(&clients, home.path(), &[entry]).await;
    let args = json!({ "message": "hello" });
    let turn = session.says(turn, "mcp__everything__echo", args, "Echo: hello").await;
    session.end(turn).await;
}

#[tokio::test]
async fn tools_of_the_mesh_follow_what_happens_to_services_during_a_session() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        deploy(world, "alpha", "one").await;
        let ana = world.join("ana", &[]).await;
        let (session, turn) = Session::start(&clients, &world.folder("claude"), &[mesh_entry(&ana)]).await;
        let of = |service: &str, tool: &str| format!("mcp__claudemesh__svc__{service}__{tool}");
        let echo = of("alpha", "echo");
        let text = json!({ "text": "hi" });
        let turn = session.model.until(turn, "alpha is listed", BUSY, |turn| turn.offers(&echo)).await;
        let turn = session.says(turn, &echo, text.clone(), "hi").await;
        let turn = session.says(turn, &of("alpha", "version"), json!({}), "one").await;

        // Somebody deploys another one.
        deploy(world, "beta", "one").await;
        let beta = of("beta", "version");
        let turn = session.model.until(turn, "beta is listed", BUSY, |turn| turn.offers(&beta)).await;
        let turn = session.says(turn, &beta, json!({}), "one").await;

        // An update is there with the next call.
        deploy(world, "beta", "two").await;
        let turn = session.says(turn, &beta, json!({}), "two").await;

        // Its owner keeps it for themselves, and shares it again.
        world.owner.ok(["scope", "beta", "--peer"]).await;
        let turn = session.fails(turn, &beta).await;
        world.owner.ok(["scope", "beta", "--mesh-wide"]).await;
        let turn = session.says_again(turn, &beta, json!({}), "two").await;

        // A crash fails its own call and no other.
        let turn = session.model.call(turn, &of("alpha", "crash"), json!({})).await;
        let outcome = turn.outcome();
        assert!(outcome.is_error && !outcome.text.contains(NO_SUCH_TOOL), "{outcome:?}");
        let turn = session.says(turn, &echo, text.clone(), "hi").await;

        // A killed broker comes back.
        world.kill_9_broker().await;
        world.up().await;
        let turn = session.says(turn, &echo, text.clone(), "hi").await;
        deploy(world, "gamma", "one").await;
        let gamma = of("gamma", "version");
        let turn = session.model.until(turn, "gamma is listed", BUSY, |turn| turn.offers(&gamma)).await;
        let turn = session.says(turn, &gamma, json!({}), "one").await;

        world.owner.ok(["rm", "gamma"]).await;
        let turn = session.fails(turn, &gamma).await;
        session.end(turn).await;
    })
    .await;
}

/// A call that is always possible and changes nothing.
const BUSY: &str = "mcp__claudemesh__mesh_mcp_catalog";

#[tokio::test]
async fn a_service_as_a_server_of_its_own_follows_what_happens_to_it() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        deploy(world, "alpha", "one").await;
        deploy(world, "beta", "one").await;
        let ana = world.join("ana", &[]).await;
        let entries = [native_entry(&ana, "alpha"), native_entry(&ana, "beta")];
        let (session, turn) = Session::start(&clients, &world.folder("claude"), &entries).await;
        let (echo, version) = ("mcp__mesh-alpha__echo", "mcp__mesh-alpha__version");
        let text = json!({ "text": "hi" });
        let turn = session.says(turn, echo, text.clone(), "hi").await;

        deploy(world, "alpha", "two").await;
        let turn = session.says(turn, version, json!({}), "two").await;

        world.owner.ok(["scope", "alpha", "--peer"]).await;
        let turn = session.fails(turn, echo).await;
        world.owner.ok(["scope", "alpha", "--mesh-wide"]).await;
        let turn = session.says_again(turn, echo, text.clone(), "hi").await;

        let turn = session.model.call(turn, "mcp__mesh-alpha__crash", json!({})).await;
        let outcome = turn.outcome();
        assert!(outcome.is_error && !outcome.text.contains(NO_SUCH_TOOL), "{outcome:?}");
        let turn = session.says(turn, echo, text.clone(), "hi").await;

        world.kill_9_broker().await;
        world.up().await;
        let turn = session.says(turn, version, json!({}), "two").await;
        session.end(turn).await;
    })
    .await;
}

#[tokio::test]
async fn a_session_that_begins_while_the_broker_is_away_sees_the_last_known_tools_and_works_once_it_is_back()
{
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        deploy(world, "alpha", "one").await;
        let entries = [native_entry(&world.owner, "alpha")];
        let tool = "mcp__mesh-alpha__version";
        let (session, turn) = Session::start(&clients, &world.folder("first"), &entries).await;
        let turn = session.says(turn, tool, json!({}), "one").await;
        session.end(turn).await;

        world.kill_9_broker().await;
        let (session, turn) = Session::start(&clients, &world.folder("second"), &entries).await;
        assert!(turn.offers(tool), "{:#?}", turn.tools);
        world.up().await;
        let turn = session.says(turn, tool, json!({}), "one").await;
        session.end(turn).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_that_the_session_itself_deploys_tells_its_progress_and_is_there() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        let heard = world.folder("heard").join("lines");
        let entry = mesh_entry(&world.owner).recorded(&heard);
        let (session, turn) = Session::start(&clients, &world.folder("claude"), &[entry]).await;
        let folder = fixture::python_folder(&world.folder("python"));
        let arguments = json!({ "server_name": "echo", "path": folder.to_str().unwrap() });
        let turn = session.model.call(turn, "mcp__claudemesh__mesh_mcp_deploy", arguments).await;
        let outcome = turn.outcome();
        assert!(!outcome.is_error && outcome.text.contains("svc__echo__echo"), "{outcome:?}");
        // Only who gives a token is told: Claude Code did.
        let lines = std::fs::read_to_string(&heard).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let progress = lines.filter(|line| line["method"] == "notifications/progress");
        let told: Vec<_> = progress.map(|line| line["params"]["message"].to_string()).collect();
        assert!(told.iter().any(|message| message.contains("upload")), "{told:?}");
        assert!(told.len() > 2, "{told:?}");

        let echo = "mcp__claudemesh__svc__echo__echo";
        let turn = session.model.until(turn, "echo is listed", BUSY, |turn| turn.offers(echo)).await;
        let turn = session.says(turn, echo, json!({ "text": "hi" }), "hi").await;
        session.end(turn).await;
    })
    .await;
}

#[tokio::test]
async fn a_launched_session_has_the_mesh_and_each_service_as_a_server() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        deploy(world, "alpha", "one").await;
        let model = Model::start().await;
        let mut words = vec!["launch", "--name", "launched", "--"];
        words.extend(programs::claude_flags());
        let mut command = world.owner.command(words);
        let folder = programs::claude_binary(&clients).parent().unwrap().to_owned();
        let search =
            std::env::join_paths([folder, "/usr/local/bin".into(), "/usr/bin".into(), "/bin".into()]);
        command.env("PATH", search.unwrap()).envs(programs::claude_environment(&model));
        let mut claude = Claude::spawn(command);
        claude.user("go").await;
        let turn = model.turn().await;
        let session = Session { claude, model };
        let text = json!({ "text": "hi" });
        let turn = session.says(turn, "mcp__mesh-alpha__echo", text.clone(), "hi").await;
        let svc = "mcp__claudemesh__svc__alpha__echo";
        let turn = session.model.until(turn, "svc__ tools", BUSY, |turn| turn.offers(svc)).await;
        let turn = session.says(turn, svc, text, "hi").await;
        session.end(turn).await;
    })
    .await;
}
