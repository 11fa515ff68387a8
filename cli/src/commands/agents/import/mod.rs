//! `import`: the servers that clients are configured with become services of the mesh.
//!
//! A server is looked at ([`found`]), judged ([`plan`]), asked for, its secrets go into the vault, it is deployed, and only when
//! it runs do its entries start `claudemesh mcp --service` in place of it, under the names that they had.
//! Invariant: at no time is a server in neither place; what stood in an entry is written down before the entry changes.

mod found;
mod plan;
mod record;
mod undo;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser as _;
use serde::Serialize;
use serde_json::Value;
use wire::peer::hosting::{McpCatalog, McpCatalogResult};
use wire::vault::VaultName;
use zeroize::Zeroizing;

use found::{Found, Place, search, service_names};
use plan::{Source, Variable, Verdict, judge, places};
use record::Item;

use super::clients::Program;
use super::edit::{Change, EditError, Original, foreign_lock};
use super::text::Shape;
use crate::args::{Cli, Command, DeployArgs, ImportArgs};
use crate::commands::{ask, deploy, vault};
use crate::env;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::plain::{brief, plain_line};

const ROUNDS: usize = 5;
/// Fields of an entry that say how the server is started: a hosted one is not.
const STARTING: [&str; 9] =
    ["type", "command", "args", "env", "environment", "enabled", "cwd", "envFile", "env_vars"];

/// Files as this import wrote them last: of what stands between two of its own changes nobody needs a backup.
type Written = BTreeMap<PathBuf, String>;

/// A server and what is to become of it.
struct Line {
    found: Found,
    service: String,
    verdict: Verdict,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    configured_in: Vec<String>,
    /// What keeps it where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<&'a str>,
    secrets: Vec<&'a str>,
}

pub async fn import(here: &Here, args: &ImportArgs) -> Result<(), Failure> {
    if args.undo {
        return undo::undo(here, args.write).await;
    }
    if args.forget {
        return undo::forget(here, args.write.yes);
    }
    let lines = look(here, args).await?;
    if lines.is_empty() {
        here.out.remark("no MCP servers are configured in the clients of this machine");
        return if here.out.json { here.out.document(&rows(&lines)) } else { Ok(()) };
    }
    show(here, &lines)?;
    let wanted: Vec<&Line> =
        lines.iter().filter(|line| matches!(line.verdict, Verdict::Host { .. })).collect();
    if args.write.dry_run || wanted.is_empty() {
        return Ok(());
    }
    if !args.write.yes && !here.out.can_ask() {
        return Err(Failure::user("nobody is here to answer which of them to host")
            .with_cure("Add --yes once you have looked at them, or name some with --only."));
    }
    let mut failed = None;
    let mut n_hosted = 0;
    let mut written = Written::new();
    for line in wanted {
        match host(here, line, args.write.yes, &mut written).await {
            Ok(true) => n_hosted += 1,
            Ok(false) => {}
            Err(failure) => {
                here.out.remark(format!(
                    "{}: {}; its entries stay as they are",
                    line.service,
                    plain_line(&failure.message)
                ));
                failed = Some(failure);
            }
        }
    }
    if n_hosted > 0 {
        farewell(here);
    }
    failed.map_or(Ok(()), Err)
}

fn farewell(here: &Here) {
    let record = record::path(&here.config_folder);
    here.out
        .remark("a hosted server reaches no network until you say where: claudemesh learn NAME finds it out");
    here.out.remark(format!(
        "undo: claudemesh import --undo. For that, {} holds the original entries with all that is secret in them; \
         claudemesh import --forget deletes it",
        record.display()
    ));
}

async fn look(here: &Here, args: &ImportArgs) -> Result<Vec<Line>, Failure> {
    let folder = std::env::current_dir()
        .map_err(|e| Failure::user(format!("cannot tell which folder this is: {e}")))?;
    let (mut found, failures) = search(&folder)?;
    for failure in &failures {
        here.out.remark(format!("left out: {}", plain_line(&failure.message)));
    }
    if let Some(unknown) = args.only.iter().find(|name| !found.iter().any(|one| one.name == **name)) {
        return Err(Failure::user(format!("no client is configured with a server `{unknown}`")));
    }
    found.retain(|one| args.only.is_empty() || args.only.contains(&one.name));
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let catalog: McpCatalogResult = ask(here, &McpCatalog {}).await?;
    let taken: Vec<String> = catalog.services.into_iter().map(|service| service.name).collect();
    let home = env::client_folders()?.home;
    let home = home.canonicalize().unwrap_or(home);
    let names = service_names(&found);
    let lines = found.into_iter().zip(names).map(|(found, service)| {
        let verdict = judge(&found, Some(&home), &service, &taken);
        Line { found, service, verdict }
    });
    Ok(lines.collect())
}

fn rows(lines: &[Line]) -> Vec<Row<'_>> {
    lines.iter().map(row).collect()
}

fn row(line: &Line) -> Row<'_> {
    let (left, secrets) = match &line.verdict {
        Verdict::Leave(why) => (Some(why.as_str()), Vec::new()),
        Verdict::Host { env, .. } => {
            (None, env.iter().filter(|v| v.is_secret).map(|v| v.name.as_str()).collect())
        }
    };
    Row {
        name: &line.found.name,
        service: left.is_none().then_some(line.service.as_str()),
        configured_in: line.found.places.iter().map(|place| place.title.clone()).collect(),
        left,
        secrets,
    }
}

fn show(here: &Here, lines: &[Line]) -> Result<(), Failure> {
    if here.out.json {
        return here.out.document(&rows(lines));
    }
    let rows = lines.iter().map(|line| {
        let what = match &line.verdict {
            Verdict::Leave(why) => format!("stays: {}", plain_line(why)),
            Verdict::Host { source, env } => {
                let secrets: Vec<&str> =
                    env.iter().filter(|v| v.is_secret).map(|v| v.name.as_str()).collect();
                let sealed = match secrets.as_slice() {
                    [] => String::new(),
                    names => format!(", into the vault: {}", names.join(", ")),
                };
                format!("host as {}: {}{}", line.service, source_words(source), brief(&sealed, 200))
            }
        };
        vec![brief(&line.found.name, 40), brief(&places(&line.found.places), 60), what]
    });
    here.out.line(table(&["SERVER", "CONFIGURED IN", "WHAT WOULD BE DONE"], rows.collect()));
    Ok(())
}

fn source_words(source: &Source) -> String {
    match source {
        Source::Package(words) => brief(&words.join(" "), 100),
        Source::Folder { root, entry, .. } => {
            let entry = entry.as_ref().map(|entry| format!(" ({entry})")).unwrap_or_default();
            brief(&format!("the folder {}{entry}", root.display()), 100)
        }
    }
}

/// `Ok(false)`: not wanted.
async fn host(here: &Here, line: &Line, is_agreed: bool, written: &mut Written) -> Result<bool, Failure> {
    let Verdict::Host { source, env } = &line.verdict else { return Ok(false) };
    let service = &line.service;
    if !is_agreed {
        let shown = format!("\n{}: {}", line.found.name, source_words(source));
        if here.out.confirm(&shown, &format!("Host it as {service}?")).is_err() {
            here.out.remark("left as it is");
            return Ok(false);
        }
    }
    let (plain, secret) = resolve(here, service, env)?;
    let names: Vec<(VaultName, Zeroizing<Vec<u8>>)> = secret
        .iter()
        .map(|(name, value)| Ok((vault_name(service, name)?, Zeroizing::new(value.as_bytes().to_vec()))))
        .collect::<Result<_, Failure>>()?;
    let stored = if names.is_empty() { Vec::new() } else { vault::store_new(here, &names).await? };
    let references = secret.iter().zip(&stored).map(|((name, _), key)| format!("{name}=$vault:{key}"));
    let plain = plain.into_iter().map(|(name, value)| format!("{name}={value}"));
    let env: Vec<String> = plain.chain(references).collect();
    let deployed = match deploy_args(service, source, &env) {
        Ok(args) => deploy::deploy(here, &args).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = deployed {
        // A failed service stays to be looked at (`why`, `logs`), and so do its secrets, unless it never came to be.
        if !exists(here, service).await && !stored.is_empty() {
            vault::remove_all(here, &stored).await?;
        }
        return Err(failure);
    }
    for place in &line.found.places {
        replace(here, place, service, written).await?;
    }
    Ok(true)
}

async fn exists(here: &Here, service: &str) -> bool {
    let found: Result<McpCatalogResult, Failure> = ask(here, &McpCatalog {}).await;
    // Who can not tell leaves it alone.
    found.map_or(true, |found| found.services.iter().any(|one| one.name == service))
}

type Plain = Vec<(String, String)>;
type Secrets = Vec<(String, Zeroizing<String>)>;

/// The values themselves: from the environment where the configuration says so, else asked for.
fn resolve(here: &Here, service: &str, env: &[Variable]) -> Result<(Plain, Secrets), Failure> {
    let lookup = |name: &str| env::named_by_user(name)?.into_string().ok();
    let (mut plain, mut secret) = (Vec::new(), Vec::new());
    for Variable { name, text, is_secret } in env {
        match values::expand(text, &lookup) {
            Ok(value) if *is_secret => secret.push((name.clone(), Zeroizing::new(value))),
            Ok(value) => plain.push((name.clone(), value)),
            Err(values::Missing(what)) if here.out.can_ask() => {
                let value = vault::typed(&format!("{service}: {name} ({})", plain_line(&what)))?;
                // Whatever somebody types when asked may be a secret.
                secret.push((name.clone(), value));
            }
            Err(values::Missing(what)) => {
                let message = format!("its {name} names `{what}`, which is not in your environment");
                return Err(
                    Failure::user(message).with_cure("Set it and import again, or answer at a terminal.")
                );
            }
        }
    }
    // What is empty can not be sealed, and hides nothing.
    let (sealed, empty): (Secrets, Secrets) = secret.into_iter().partition(|(_, value)| !value.is_empty());
    plain.extend(empty.into_iter().map(|(name, _)| (name, String::new())));
    Ok((plain, sealed))
}

fn vault_name(service: &str, variable: &str) -> Result<VaultName, Failure> {
    let text = format!("{service}-{variable}").to_ascii_lowercase();
    VaultName::parse(&text).map_err(|e| Failure::user(format!("{variable}: {e}")))
}

/// As if it had been typed: what `deploy` refuses is refused here, too.
fn deploy_args(service: &str, source: &Source, env: &[String]) -> Result<DeployArgs, Failure> {
    let lookup = |name: &str| env::named_by_user(name)?.into_string().ok();
    let expand = |text: &String| {
        values::expand(text, &lookup).map_err(|values::Missing(what)| {
            Failure::user(format!("an argument names `{what}`, which is not in your environment"))
        })
    };
    let mut words = vec!["claudemesh".to_owned(), "deploy".to_owned(), service.to_owned()];
    words.extend(env.iter().map(|variable| format!("--env={variable}")));
    match source {
        Source::Package(command) => {
            words.push("--".to_owned());
            words.extend(command.iter().map(expand).collect::<Result<Vec<_>, _>>()?);
        }
        Source::Folder { root, entry, args } => {
            words.extend(entry.iter().map(|entry| format!("--entry={entry}")));
            for arg in args {
                words.push(format!("--args={}", expand(arg)?));
            }
            let root = root.to_str().ok_or_else(|| Failure::user("the folder's path is not UTF-8"))?;
            words.push(root.to_owned());
        }
    }
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Deploy(args), .. }) => Ok(*args),
        // Not with the command line in it: variables are on that.
        _ => Err(Failure::user("its command can not be read; deploy it by hand")),
    }
}

/// What a person set about the server's tools (a limit of time, those that are switched off) is said of a hosted one as well.
fn kept(entry: &Value) -> Vec<(String, Shape)> {
    let fields = entry.as_object().into_iter().flatten();
    let kept = fields.filter(|(name, _)| !STARTING.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), Shape::of(value))).collect()
}

/// The entry keeps its name, and so tools and permission rules keep theirs.
async fn replace(here: &Here, place: &Place, service: &str, written: &mut Written) -> Result<(), Failure> {
    let mut program = Program::ours(here.mesh.as_deref(), Some(service))?;
    if place.is_shared {
        // Other people's machines have it elsewhere.
        (program.command, program.env) = ("claudemesh".to_owned(), Vec::new());
    }
    let ours = place.style.entry(&program);
    for _ in 0..ROUNDS {
        let original = Original::read(&place.file)?;
        let mut draft = original.draft(place.format)?;
        let Some(raw) = draft.document.raw(&place.path()) else {
            here.out.remark(by_hand(place, service));
            return Ok(());
        };
        let kept = draft.document.at(&place.path()).map(kept).unwrap_or_default();
        let shape = Shape::Fields(ours.iter().cloned().chain(kept).collect());
        if draft.document.set(&place.path(), &shape).is_err() {
            here.out.remark(by_hand(place, service));
            return Ok(());
        }
        record::add(&here.config_folder, Item::of(place, service, raw)).await?;
        let after = draft.document.text().to_owned();
        let foreign_lock = foreign_lock(&place.file);
        let is_ours = written.get(&place.file).is_some_and(|text| original.text.as_ref() == Some(text));
        match (Change { original, after: Some(after.clone()), foreign_lock, is_ours }).write().await {
            Ok(backup) => {
                written.insert(place.file.clone(), after);
                return say_replaced(here, place, service, backup);
            }
            Err(EditError::Changed(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(EditError::Busy(place.file.clone()).into())
}

fn by_hand(place: &Place, service: &str) -> String {
    format!(
        "the entry in {} is written in a way that can not be changed alone; put `claudemesh mcp --service {service}` there yourself",
        place.file.display()
    )
}

fn say_replaced(here: &Here, place: &Place, service: &str, backup: Option<PathBuf>) -> Result<(), Failure> {
    here.out.line(format!("  {} now starts `claudemesh mcp --service {service}`", place.title));
    if let Some(backup) = backup {
        here.out.line(format!("  backup    {}", backup.display()));
    }
    if place.is_shared {
        here.out.remark(format!(
            "{} is read by others of this project, too: they need claudemesh and this mesh",
            place.file.display()
        ));
    }
    Ok(())
}
