//! Skills of the mesh: instructions for agents, with files (peer-protocol reference §3.14).

use serde::{Deserialize, Serialize};

use super::body;
use crate::RawJson;

/// Makes a skill, or replaces one of the caller's own (an admin: anybody's). Answer: [`SkillAck`] `shared`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShareSkill {
    /// The rule of service names.
    pub name: String,
    pub description: String,
    /// Markdown, at most 256 KiB.
    pub instructions: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A JSON object; keys that are rendered: `when_to_use`, `allowed_tools`, `model`, `context`, `agent`, `user_invocable`,
    /// `argument_hint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<RawJson>,
    /// *Ours*: further files of the bundle, at most 200, 4 MiB in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<SkillFile>,
}

/// *Ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkillFile {
    /// Relative, with `/`, without `..`; not `SKILL.md`.
    pub path: String,
    /// Base64.
    pub content: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// Whether this may be [`SkillFile::path`]: whoever writes it into a folder stays in that folder.
pub fn is_bundle_path(path: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= 255
        && path.split('/').all(is_part)
        && !path.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
        && !path.eq_ignore_ascii_case("SKILL.md")
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkillAck {
    pub name: String,
    /// `shared`, `removed`, `not_found`.
    pub action: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetSkill {
    pub name: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SkillData {
    pub skill: Option<Skill>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Skill {
    pub name: String,
    pub description: String,
    pub instructions: String,
    pub tags: Vec<String>,
    /// Display name.
    pub author: String,
    pub manifest: Option<RawJson>,
    /// ISO 8601, UTC.
    pub created_at: String,
    /// *Ours*.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<SkillFile>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSkills {
    /// Case-insensitive part of name, description or a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
}

/// By name.
#[derive(Debug, Serialize, Deserialize)]
pub struct SkillList {
    pub skills: Vec<SkillEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkillEntry {
    pub name: String,
    pub description: String,
    pub tags: Vec<String>,
    pub author: String,
    pub created_at: String,
    /// *Ours*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<RawJson>,
    /// *Ours*: paths of the further files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
}

/// By its author or an admin. Answer: [`SkillAck`] `removed` or `not_found`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveSkill {
    pub name: String,
}

/// `eventData` of `skill_shared` and `skill_removed` (*ours*), to everybody in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkillEvent {
    pub name: String,
    pub by: String,
}

body! {
    ShareSkill = "share_skill";
    SkillAck = "skill_ack";
    GetSkill = "get_skill";
    SkillData = "skill_data";
    ListSkills = "list_skills";
    SkillList = "skill_list";
    RemoveSkill = "remove_skill";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_path_stays_inside() {
        for good in ["a", "a/b.txt", ".hidden", "sub/SKILL.md", "a b/ü"] {
            assert!(is_bundle_path(good), "{good}");
        }
        for bad in
            ["", "/a", "a/", "a//b", "./a", "a/../b", "..", "a\\b", "C:x", "a\0", "SKILL.md", "skill.md"]
        {
            assert!(!is_bundle_path(bad), "{bad}");
        }
        assert!(!is_bundle_path(&"x".repeat(256)));
    }
}
