//! Skills, by tool: share, get, list, remove, and a bundle from a folder or repository.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wire::peer::skills::{ListSkills, RemoveSkill, ShareSkill, SkillAck, SkillList};
use wire::{ErrorCode, ServiceName};

use super::super::words::Refusal;
use super::super::{Mesh, SkillSource, skills, splice};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Share {
    name: String,
    description: String,
    instructions: String,
    #[serde(default)]
    tags: Vec<String>,
    when_to_use: Option<String>,
    allowed_tools: Option<Vec<String>>,
    model: Option<String>,
    context: Option<Context>,
    agent: Option<String>,
    user_invocable: Option<bool>,
    argument_hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Context {
    Inline,
    Fork,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    query: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bundle {
    path: Option<PathBuf>,
    git_url: Option<String>,
    git_branch: Option<String>,
    file_id: Option<String>,
}

impl Share {
    fn frame(self) -> ShareSkill {
        let Self { name, description, instructions, tags, .. } = &self;
        let manifest: Map<String, Value> = [
            ("when_to_use", json!(self.when_to_use)),
            ("allowed_tools", json!(self.allowed_tools)),
            ("model", json!(self.model)),
            ("context", json!(self.context)),
            ("agent", json!(self.agent)),
            ("user_invocable", json!(self.user_invocable)),
            ("argument_hint", json!(self.argument_hint)),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        ShareSkill {
            name: name.clone(),
            description: description.clone(),
            instructions: instructions.clone(),
            tags: tags.clone(),
            manifest: (!manifest.is_empty()).then(|| splice::of(&manifest)),
            files: Vec::new(),
        }
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal(format!(
        "the mesh has no skill `{name}` ({})\nlist_skills shows what there is.",
        ErrorCode::NotFound
    ))
}

impl Mesh {
    pub(super) async fn share_skill(&self, input: Share) -> Result<String, Refusal> {
        ServiceName::parse(&input.name).map_err(|e| Refusal(format!("`name`: {e} (invalid_name)")))?;
        self.share(input.frame()).await
    }

    async fn share(&self, frame: ShareSkill) -> Result<String, Refusal> {
        let files = frame.files.len();
        let done: SkillAck = self.member.connection.request(&frame).await?;
        let with = if files == 0 { String::new() } else { format!(" with {files} files") };
        Ok(format!("the skill {} is {}{with}", done.name, done.action))
    }

    pub(super) async fn get_skill(&self, input: Named) -> Result<String, Refusal> {
        let skill = self.skill(&input.name).await?.ok_or_else(|| unknown(&input.name))?;
        let mut text = skills::document(&skill);
        if !skill.files.is_empty() {
            text.push_str("\n\nFiles of this skill, as resources:\n");
            let paths =
                skill.files.iter().map(|file| format!("- {}", skills::file_uri(&skill.name, &file.path)));
            text.push_str(&paths.collect::<Vec<_>>().join("\n"));
            text.push_str(&format!(
                "\nTo get them as files: claudemesh skill show {} --to FOLDER",
                skill.name
            ));
        }
        Ok(text)
    }

    pub(super) async fn list_skills(&self, input: Query) -> Result<String, Refusal> {
        let frame = ListSkills { query: input.query };
        let SkillList { skills } = self.member.connection.request(&frame).await?;
        if skills.is_empty() {
            return Ok("No skill is shared in this mesh that fits.".to_owned());
        }
        let lines = skills.iter().map(|skill| {
            let tags =
                if skill.tags.is_empty() { String::new() } else { format!(" [{}]", skill.tags.join(", ")) };
            format!("- {}: {}{tags} (by {})", skill.name, skill.description, skill.author)
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    pub(super) async fn remove_skill(&self, input: Named) -> Result<String, Refusal> {
        let done: SkillAck = self.member.connection.request(&RemoveSkill { name: input.name }).await?;
        match done.action.as_str() {
            "not_found" => Err(unknown(&done.name)),
            action => Ok(format!("the skill {} is {action}", done.name)),
        }
    }

    pub(super) async fn deploy_skill(&self, input: Bundle) -> Result<String, Refusal> {
        let source = match input {
            Bundle { path: Some(path), git_url: None, git_branch: None, file_id: None } => {
                SkillSource::Path(path)
            }
            Bundle { path: None, git_url: Some(url), git_branch: reference, file_id: None } => {
                SkillSource::Git { url, reference }
            }
            Bundle { path: None, git_url: None, file_id: Some(_), .. } => {
                return Err(Refusal(
                    "skills are not read from uploads; give `path` or `git_url` (invalid_args)".to_owned(),
                ));
            }
            _ => return Err(Refusal("give exactly one of `path` and `git_url` (invalid_args)".to_owned())),
        };
        let frame = (self.hands.skill)(source).await.map_err(Refusal)?;
        self.share(frame).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_skill_becomes_its_manifest() {
        let share: Share = serde_json::from_str(
            r#"{"name":"a","description":"d","instructions":"i","context":"fork","user_invocable":false,"allowed_tools":["Read"]}"#,
        )
        .unwrap();
        let frame = share.frame();
        let manifest: Value = serde_json::from_str(frame.manifest.unwrap().get()).unwrap();
        assert_eq!(
            manifest,
            json!({ "context": "fork", "user_invocable": false, "allowed_tools": ["Read"] })
        );
        let bare: Share =
            serde_json::from_str(r#"{"name":"a","description":"d","instructions":"i"}"#).unwrap();
        assert!(bare.frame().manifest.is_none());
        assert!(
            serde_json::from_str::<Share>(
                r#"{"name":"a","description":"d","instructions":"i","context":"x"}"#
            )
            .is_err()
        );
    }
}
