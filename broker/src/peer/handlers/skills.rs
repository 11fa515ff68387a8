//! Skills: sharing, reading, removing.

use wire::peer::skills::{GetSkill, ListSkills, RemoveSkill, ShareSkill, SkillAck, SkillData, SkillList};

use crate::error::FrameError;
use crate::peer::dispatch::{Asked, body};
use crate::skills;

/// Handles `kind`; `None` when it is no frame of skills.
pub async fn handle(kind: &str, asked: &Asked, text: &str) -> Option<Result<(), FrameError>> {
    match kind {
        "share_skill" | "get_skill" | "list_skills" | "remove_skill" => Some(route(kind, asked, text).await),
        _ => None,
    }
}

async fn route(kind: &str, asked: &Asked, text: &str) -> Result<(), FrameError> {
    match kind {
        "share_skill" => share(asked, body(text)?).await,
        "get_skill" => get(asked, body(text)?).await,
        "list_skills" => list(asked, body(text)?).await,
        _ => remove(asked, body(text)?).await,
    }
}

async fn share(asked: &Asked, frame: ShareSkill) -> Result<(), FrameError> {
    let name = skills::share(&asked.broker, &asked.caller, frame).await?;
    asked.answer(&SkillAck { name, action: "shared".into() }).await;
    Ok(())
}

async fn get(asked: &Asked, frame: GetSkill) -> Result<(), FrameError> {
    let skill = skills::find(&asked.broker, &asked.view, &frame.name).await?;
    asked.answer(&SkillData { skill }).await;
    Ok(())
}

async fn list(asked: &Asked, frame: ListSkills) -> Result<(), FrameError> {
    let skills = skills::list(&asked.broker, &asked.view, frame.query.as_deref()).await?;
    asked.answer(&SkillList { skills }).await;
    Ok(())
}

async fn remove(asked: &Asked, frame: RemoveSkill) -> Result<(), FrameError> {
    let RemoveSkill { name } = frame;
    let action =
        if skills::remove(&asked.broker, &asked.caller, &name).await? { "removed" } else { "not_found" };
    asked.answer(&SkillAck { name, action: action.into() }).await;
    Ok(())
}
