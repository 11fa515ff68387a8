//! `connect` and `disconnect`.
//!
//! Invariant: of what the person wrote nothing is changed; an entry of our name that is not ours is refused, not replaced.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use wire::peer::hosting::{McpCatalog, McpCatalogResult};

use super::clients::{Client, OUR_NAME, Program, SERVICE_PREFIX, Style, client};
use super::edit::{Change, Draft, EditError, Original, foreign_lock};
use super::record::{Before, Edit, Record, hash};
use super::text::{Fault, Format, Shape, keys};
use super::{claude, show};
use crate::args::{ClientName, ConnectArgs, DisconnectArgs, WriteArgs};
use crate::commands::ask;
use crate::failure::Failure;
use crate::here::Here;

/// How often a file may change under our hands.
const ROUNDS: usize = 5;

/// One file and what it should hold of ours.
struct Job {
    client: Client,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Servers,
    /// Hooks and status line of Claude Code.
    Settings,
}

/// What is to be there: `None` takes it out.
struct Wish {
    entries: Option<Vec<(String, Program)>>,
    /// Entries of services that are not wished for go.
    is_exact: bool,
}

#[derive(Serialize)]
struct Done {
    client: &'static str,
    file: PathBuf,
    changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<PathBuf>,
}

pub async fn connect(here: &Here, args: &ConnectArgs) -> Result<(), Failure> {
    let mesh = here.mesh.as_deref();
    let ours = Program::ours(mesh, None)?;
    let mut entries = vec![(OUR_NAME.to_owned(), ours.clone())];
    if args.services {
        let found: McpCatalogResult = ask(here, &McpCatalog {}).await?;
        for service in &found.services {
            let name = format!("{SERVICE_PREFIX}{}", service.name);
            entries.push((name, Program::ours(mesh, Some(&service.name))?));
        }
    }
    let wish = Wish { entries: Some(entries), is_exact: args.services };
    let jobs = jobs(&args.clients, !args.no_hooks)?;
    if here.config().is_ok_and(|config| config.meshes.is_empty()) {
        here.out.remark("warning: you are in no mesh yet: claudemesh up, or claudemesh join LINK");
    }
    let done = settle(here, &jobs, &wish, args.write, "Write this?").await?;
    say(here, &done, args.write, "connected")?;
    if !args.write.dry_run {
        let words: Vec<&str> = clients_of(&jobs).map(Client::word).collect();
        here.out.remark(format!("undo: claudemesh disconnect {}", words.join(" ")));
    }
    Ok(())
}

pub async fn disconnect(here: &Here, args: &DisconnectArgs) -> Result<(), Failure> {
    let wish = Wish { entries: None, is_exact: true };
    let jobs = jobs(&args.clients, true)?;
    let done = settle(here, &jobs, &wish, args.write, "Take it out?").await?;
    say(here, &done, args.write, "disconnected")
}

fn clients_of(jobs: &[Job]) -> impl Iterator<Item = &Client> {
    jobs.iter().filter(|job| job.place == Place::Servers).map(|job| &job.client)
}

fn jobs(names: &[ClientName], has_hooks: bool) -> Result<Vec<Job>, Failure> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    let mut jobs = Vec::new();
    for name in names {
        jobs.push(Job { client: client(name)?, place: Place::Servers });
        if name == ClientName::ClaudeCode && has_hooks {
            let settings = Client { file: claude::settings_file()?, ..client(name)? };
            jobs.push(Job { client: settings, place: Place::Settings });
        }
    }
    Ok(jobs)
}

/// Points everything of ours in a client to this program, without asking: what `doctor --fix` does.
pub async fn refresh(here: &Here, name: ClientName) -> Result<(), Failure> {
    let client = client(name)?;
    let found = Original::read(&client.file)?.draft(client.format)?;
    let command = Program::ours(None, None)?.command;
    let entries = all_ours(found.document.value(), client.servers, client.style).into_iter();
    let entries: Vec<_> =
        entries.map(|(entry, old)| (entry, Program { command: command.clone(), ..old })).collect();
    let has_hooks = name == ClientName::ClaudeCode && {
        let settings = Original::read(&claude::settings_file()?)?.draft(Format::Json)?;
        !claude::commands(settings.document.value()).is_empty()
    };
    let wish = Wish { entries: Some(entries), is_exact: false };
    let write = WriteArgs { dry_run: false, yes: true };
    settle(here, &jobs(&[name], has_hooks)?, &wish, write, "").await.map(|_| ())
}

/// Shows, asks, writes; looks again when somebody else wrote meanwhile.
async fn settle(
    here: &Here,
    jobs: &[Job],
    wish: &Wish,
    write: WriteArgs,
    question: &str,
) -> Result<Vec<Done>, Failure> {
    let done = |changed: Vec<bool>, mut backups: Vec<Option<PathBuf>>| -> Vec<Done> {
        let done = jobs.iter().zip(changed).enumerate().map(|(at, (job, changed))| Done {
            client: job.client.word(),
            file: job.client.file.clone(),
            changed,
            backup: backups[at].take(),
        });
        done.collect()
    };
    let mut backups: Vec<Option<PathBuf>> = jobs.iter().map(|_| None).collect();
    let mut changed = vec![false; jobs.len()];
    for _ in 0..ROUNDS {
        let record = Record::load(&here.config_folder);
        let plans = jobs.iter().map(|job| plan(job, wish, &record)).collect::<Result<Vec<_>, _>>()?;
        let needed: Vec<bool> = plans.iter().map(|(change, _)| change.is_needed()).collect();
        let shown = plans.iter().zip(jobs).filter(|((change, _), _)| change.is_needed());
        let shown: Vec<String> = shown.map(|((change, _), job)| show::diff(change, format_of(job))).collect();
        if write.dry_run {
            here.out.line(shown.join("\n"));
            return Ok(done(needed, backups));
        }
        if shown.is_empty() {
            return Ok(done(changed, backups));
        }
        if write.yes {
            here.out.remark(shown.join("\n"));
        } else {
            here.out.confirm(&shown.join("\n"), question)?;
        }
        let mut is_stale = false;
        for (at, (change, created)) in plans.iter().enumerate().filter(|(at, _)| needed[*at]) {
            match change.write().await {
                Ok(backup) => {
                    note(here, &record, change, created, backup.clone(), wish).await?;
                    if change.is_ours && wish.entries.is_none() {
                        record.forget_backup(&change.original.real);
                    }
                    (changed[at], backups[at]) = (true, backup.or(backups[at].take()));
                }
                Err(EditError::Changed(path)) => {
                    here.out.remark(format!("{} was changed meanwhile; looking again", path.display()));
                    is_stale = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !is_stale {
            return Ok(done(changed, backups));
        }
    }
    Err(Failure::user("a file is changed again and again by another program")
        .with_cure("Close it and try again."))
}

fn format_of(job: &Job) -> Format {
    match job.place {
        Place::Servers => job.client.format,
        Place::Settings => Format::Json,
    }
}

/// What becomes of a file, and what of it was made around our things.
fn plan(job: &Job, wish: &Wish, record: &Record) -> Result<(Change, Vec<Vec<String>>), Failure> {
    let original = Original::read(&job.client.file)?;
    let known = record.of(&original.real).map(|edit| edit.created.clone()).unwrap_or_default();
    let mut draft = original.draft(format_of(job))?;
    draft.created = known;
    let before = original.text.as_deref().and_then(|text| record.restored(&original.real, text));
    let is_ours = before.is_some();
    let after = match (&wish.entries, before) {
        (Some(entries), _) => {
            put_all(&mut draft, job, entries, wish.is_exact)?;
            Some(draft.document.text().to_owned())
        }
        (None, Some(before)) => before,
        (None, None) => take_all(&mut draft, job, &original)?,
    };
    // An empty file that was not there is not written.
    let after = after.filter(|text| original.text.is_some() || !text.trim().is_empty());
    let foreign_lock = foreign_lock(&original.path);
    Ok((Change { original, after, foreign_lock, is_ours }, draft.created))
}

fn put_all(
    draft: &mut Draft,
    job: &Job,
    entries: &[(String, Program)],
    is_exact: bool,
) -> Result<(), Failure> {
    let fault = |fault: Fault| of_fault(&job.client, fault);
    if job.place == Place::Settings {
        let ours = entries.iter().find(|(name, _)| name == OUR_NAME);
        return match ours {
            Some((_, ours)) => claude::add(draft, ours).map_err(fault),
            None => Ok(()),
        };
    }
    for (name, program) in entries {
        put(draft, &job.client, name, program)?;
    }
    if is_exact {
        for (name, _) in our_entries(draft.document.value(), &job.client) {
            if !entries.iter().any(|(wanted, _)| *wanted == name) {
                draft.document.remove(&keys(&[job.client.servers, &name])).map_err(fault)?;
            }
        }
    }
    Ok(())
}

fn of_fault(client: &Client, fault: Fault) -> Failure {
    EditError::Text { path: client.file.clone(), fault }.into()
}

/// One entry. What a person added to it stays.
pub fn put(draft: &mut Draft, client: &Client, name: &str, program: &Program) -> Result<(), Failure> {
    let path = [client.servers, name];
    let fault = |fault| of_fault(client, fault);
    let fields = client.style.entry(program);
    let Some(there) = draft.document.at(&path).cloned() else {
        return draft.set(&path, &Shape::Fields(fields)).map_err(fault);
    };
    let old = client.style.read(&there).filter(Program::is_ours).ok_or_else(|| {
        Failure::user(format!("{} has an entry `{name}` that is not claudemesh's", client.file.display()))
            .with_cure("Rename or remove it, then try again; nothing was changed.")
    })?;
    if old == *program {
        return Ok(());
    }
    let mut merged = program.clone();
    let kept = old.env.into_iter().filter(|(name, _)| !program.env.iter().any(|(own, _)| own == name));
    merged.env.extend(kept);
    for (field, shape) in client.style.entry(&merged) {
        // Whether it is switched on is the person's.
        if field == "enabled" && there.get(&field).is_some() {
            continue;
        }
        draft.set(&[client.servers, name, &field], &shape).map_err(fault)?;
    }
    Ok(())
}

/// Without our things.
fn take_all(draft: &mut Draft, job: &Job, original: &Original) -> Result<Option<String>, Failure> {
    let fault = |fault: Fault| of_fault(&job.client, fault);
    if original.text.is_none() {
        return Ok(None);
    }
    match job.place {
        Place::Settings => claude::remove(draft).map_err(fault)?,
        Place::Servers => {
            for (name, _) in our_entries(draft.document.value(), &job.client) {
                draft.document.remove(&keys(&[job.client.servers, &name])).map_err(fault)?;
            }
        }
    }
    draft.remove_created().map_err(fault)?;
    Ok(Some(draft.document.text().to_owned()))
}

/// Our entries under our names. What `import` put under a name of the person's is not `connect`'s.
pub fn our_entries(value: &Value, client: &Client) -> Vec<(String, Program)> {
    let is_our_name = |name: &str| name == OUR_NAME || name.starts_with(SERVICE_PREFIX);
    all_ours(value, client.servers, client.style).into_iter().filter(|(name, _)| is_our_name(name)).collect()
}

/// Every entry that starts `claudemesh mcp`.
pub fn all_ours(value: &Value, servers: &str, style: Style) -> Vec<(String, Program)> {
    let entries = value.get(servers).and_then(Value::as_object).into_iter().flatten();
    let programs = entries.filter_map(|(name, entry)| Some((name.clone(), style.read(entry)?)));
    programs.filter(|(_, program)| program.is_ours()).collect()
}

/// Before which text ours was written.
async fn note(
    here: &Here,
    record: &Record,
    change: &Change,
    created: &[Vec<String>],
    backup: Option<PathBuf>,
    wish: &Wish,
) -> Result<(), Failure> {
    let real = &change.original.real;
    // A file that was not there has no real path before it is written.
    let real = &real.canonicalize().unwrap_or_else(|_| real.clone());
    let edit = match (&wish.entries, &change.after) {
        (Some(_), Some(after)) => {
            let earlier = record.of(real);
            let untouched =
                |edit: &&Edit| change.original.text.as_deref().is_some_and(|text| hash(text) == edit.after);
            let before = match (earlier.filter(untouched), earlier, backup) {
                (Some(edit), _, _) => edit.before.clone(),
                // Ours is in it, and theirs since: only the text itself can tell them apart.
                (None, Some(_), _) => Before::Unknown,
                // Ours was there already, from a time of which there is no note.
                (None, None, Some(_)) if has_our_name(change) => Before::Unknown,
                (None, None, Some(backup)) => Before::Backup(backup),
                (None, None, None) => Before::Absent,
            };
            Some(Edit { after: hash(after), before, created: created.to_vec() })
        }
        _ => None,
    };
    Record::note(&here.config_folder, real, edit).await
}

fn has_our_name(change: &Change) -> bool {
    change.original.text.as_deref().is_some_and(|text| text.contains(OUR_NAME))
}

fn say(here: &Here, done: &[Done], write: WriteArgs, word: &str) -> Result<(), Failure> {
    if here.out.json {
        return here.out.document(&done);
    }
    for Done { client, file, changed, backup } in done {
        let what = match (changed, write.dry_run) {
            (false, _) => "nothing to do",
            (true, true) => "would be written",
            (true, false) => word,
        };
        here.out.line(format!("{client}: {what} ({})", file.display()));
        if let Some(backup) = backup {
            here.out.line(format!("  backup  {}", backup.display()));
        }
    }
    Ok(())
}
