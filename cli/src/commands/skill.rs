//! `skill`: instructions that the mesh shares.
//!
//! Here: the frames and what is printed. [`bundle`] is a skill as files of this machine, [`front`] the head of its SKILL.md.

mod bundle;
mod front;

use std::path::Path;

use wire::peer::skills::{
    GetSkill, ListSkills, RemoveSkill, ShareSkill, Skill, SkillAck, SkillData, SkillList,
};
use wire::{ErrorCode, ServiceName};

use self::bundle::Bundle;
use super::ask;
use crate::args::{SkillAct, SkillCommand};
use crate::failure::Failure;
use crate::here::Here;
use crate::out::{bold, table};
use crate::plain::{brief, plain, plain_line};

pub async fn skill(here: &Here, args: &SkillCommand) -> Result<(), Failure> {
    match &args.act {
        SkillAct::Ls { query } => list(here, query.clone()).await,
        SkillAct::Show { name, to } => show(here, name, to.as_deref()).await,
        SkillAct::Share { path, git, reference, name } => {
            let git = git.as_deref().map(|url| (url, reference.as_deref()));
            share(here, frame(bundle(path.as_deref(), git).await?, name.clone())?).await
        }
        SkillAct::Rm { name } => remove(here, name).await,
    }
}

async fn list(here: &Here, query: Option<String>) -> Result<(), Failure> {
    let found: SkillList = ask(here, &ListSkills { query }).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    if found.skills.is_empty() {
        here.out.remark("no skills; share one with `claudemesh skill share ./folder`");
        return Ok(());
    }
    let rows = found.skills.iter().map(|skill| {
        vec![
            plain_line(&skill.name),
            brief(&skill.author, 24),
            brief(&skill.tags.join(", "), 32),
            skill.files.len().to_string(),
            brief(&skill.description, 80),
        ]
    });
    here.out.line(table(&["NAME", "AUTHOR", "TAGS", "FILES", "DESCRIPTION"], rows.collect()));
    Ok(())
}

async fn show(here: &Here, name: &str, to: Option<&Path>) -> Result<(), Failure> {
    let found: SkillData = ask(here, &GetSkill { name: name.to_owned() }).await?;
    let skill = found.skill.ok_or_else(|| no_such_skill(name))?;
    if let Some(folder) = to {
        bundle::write(&skill, folder)?;
        here.out.remark(format!("wrote {} into {}", plain_line(&skill.name), folder.display()));
    }
    if here.out.json {
        return here.out.document(&skill);
    }
    if to.is_none() {
        here.out.line(card(&skill));
    }
    Ok(())
}

fn card(skill: &Skill) -> String {
    let mut text = format!("{}  {}\n", bold(&plain_line(&skill.name)), plain_line(&skill.description));
    let mut line = |word: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {word:<14} {}\n", plain_line(value)));
        }
    };
    line("author", &skill.author);
    line("shared", &skill.created_at);
    line("tags", &skill.tags.join(", "));
    line("files", &skill.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", "));
    for (key, value) in front::manifest(skill) {
        line(&key, &front::words(&value));
    }
    text.push('\n');
    text.push_str(plain(&skill.instructions).trim_end());
    text
}

/// A skill of this machine, or of a repository, as it is shared under its own name.
pub async fn read(path: Option<&Path>, git: Option<(&str, Option<&str>)>) -> Result<ShareSkill, Failure> {
    frame(bundle(path, git).await?, None)
}

async fn bundle(path: Option<&Path>, git: Option<(&str, Option<&str>)>) -> Result<Bundle, Failure> {
    match git {
        Some((url, reference)) => bundle::of_git(url, reference, path).await,
        None => bundle::of_path(path.unwrap_or(Path::new("."))),
    }
}

fn frame(bundle: Bundle, name: Option<String>) -> Result<ShareSkill, Failure> {
    let Bundle { text, files, folder } = bundle;
    let (mut head, instructions) = front::split(&text);
    let written = front::take_text(&mut head, "name");
    let name = name.or(written).or(folder);
    let name = name.ok_or_else(|| Failure::user("SKILL.md does not say what the skill is called"))?;
    if ServiceName::parse(&name).is_err() {
        let message = format!("`{name}` is not a name: letters, digits, `-` and `_`, at most 64");
        return Err(
            Failure::of_code(ErrorCode::InvalidName, message).with_cure("Give another one with --name.")
        );
    }
    let description = front::take_text(&mut head, "description").ok_or_else(|| {
        Failure::user("SKILL.md does not describe the skill")
            .with_cure("Begin it with `---`, a line `description: What it is for`, and `---`.")
    })?;
    let tags = front::take_list(&mut head, "tags");
    front::spell_for_mesh(&mut head);
    let manifest = if head.is_empty() { None } else { Some(front::raw(&head)?) };
    Ok(ShareSkill { name, description, instructions: instructions.to_owned(), tags, manifest, files })
}

async fn share(here: &Here, frame: ShareSkill) -> Result<(), Failure> {
    let ack: SkillAck = ask(here, &frame).await?;
    if here.out.json {
        return here.out.document(&ack);
    }
    let count = frame.files.len();
    here.out.line(format!("shared {} ({count} file{})", ack.name, if count == 1 { "" } else { "s" }));
    Ok(())
}

async fn remove(here: &Here, name: &str) -> Result<(), Failure> {
    let ack: SkillAck = ask(here, &RemoveSkill { name: name.to_owned() }).await?;
    if ack.action == "not_found" {
        return Err(no_such_skill(name));
    }
    if here.out.json {
        return here.out.document(&ack);
    }
    here.out.line(format!("removed {}", plain_line(name)));
    Ok(())
}

fn no_such_skill(name: &str) -> Failure {
    Failure::of_code(ErrorCode::NotFound, format!("no skill `{}` in this mesh", plain_line(name)))
        .with_cure("`claudemesh skill ls` lists them.")
}
