//! Deploying, watching and describing services.

use std::time::Duration;

use tokio::time::timeout;
use wire::ErrorCode;
use wire::peer::hosting::{
    McpCatalogResult, McpDeploy, McpDeployProgress, McpRollback, McpSchema, McpScope, McpScopeResult,
    McpStart, McpStatus, McpStatusResult, McpStop, McpUndeploy, McpUpdate, ServiceStatus,
};
use wire::peer::trust::{McpApprove, McpNetwork, RunnerStatusResult};

use crate::deploy::{self, Change, NewService, News};
use crate::error::FrameError;
use crate::observed::Link;
use crate::peer::dispatch::Asked;
use crate::views::{MeshView, ServiceView};
use crate::{approvals, audit, describe};

/// A runner that hangs must not hold up the frames behind.
const RUNNER_PATIENCE: Duration = Duration::from_secs(2);

pub async fn deploy(asked: &Asked, frame: McpDeploy) -> Result<Change, FrameError> {
    let deployer = asked.view.key_of(&asked.caller.member).ok_or_else(|| {
        FrameError::new(ErrorCode::Unauthorized, "you are not a member of this mesh any more")
    })?;
    let new = NewService::read(frame, deployer).map_err(|e| FrameError::new(e.code(), e.to_string()))?;
    Ok(deploy::deploy(&asked.broker, &asked.caller, &asked.view, new).await?)
}

pub async fn update(asked: &Asked, frame: McpUpdate) -> Result<Change, FrameError> {
    Ok(deploy::update(&asked.broker, &asked.caller, &asked.view, &frame.server_name).await?)
}

pub async fn rollback(asked: &Asked, frame: McpRollback) -> Result<Change, FrameError> {
    Ok(deploy::rollback(&asked.broker, &asked.caller, &asked.view, &frame.server_name).await?)
}

pub async fn start(asked: &Asked, frame: McpStart) -> Result<Change, FrameError> {
    Ok(deploy::start(&asked.broker, &asked.caller, &asked.view, &frame.server_name).await?)
}

pub async fn stop(asked: &Asked, frame: McpStop) -> Result<Change, FrameError> {
    Ok(deploy::stop(&asked.broker, &asked.caller, &asked.view, &frame.server_name).await?)
}

pub async fn undeploy(asked: &Asked, frame: McpUndeploy) -> Result<Change, FrameError> {
    Ok(deploy::undeploy(&asked.broker, &asked.caller, &asked.view, &frame.server_name).await?)
}

/// Passes progress on and ends with the terminal status. The deploy itself goes on when the client is gone.
pub async fn verdict(asked: Asked, mut change: Change) {
    while let Some(news) = change.news().await {
        match news {
            News::Progress(progress) => {
                let body = McpDeployProgress {
                    server_name: progress.service.name.to_string(),
                    generation: progress.generation.0,
                    step: progress.step,
                    line: progress.line,
                };
                asked.answer(&body).await;
            }
            News::Verdict(verdict) => {
                let status = deploy::final_status(&asked.broker, &change, verdict).await;
                return asked.answer(&status).await;
            }
        }
    }
}

pub async fn scope(asked: &Asked, frame: McpScope) -> Result<(), FrameError> {
    let McpScope { server_name, scope } = frame;
    let service = asked.view.visible(&asked.caller, &server_name)?;
    let scope = match scope {
        None => service.scope().clone(),
        Some(scope) => deploy::set_scope(&asked.broker, &asked.caller, &asked.view, &service, scope).await?,
    };
    let deployed_by = asked.view.name_of(service.deployed_by());
    asked.answer(&McpScopeResult { server_name: service.name().to_string(), scope, deployed_by }).await;
    Ok(())
}

pub async fn status(asked: &Asked, frame: McpStatus) -> Result<(), FrameError> {
    let service = asked.view.visible(&asked.caller, &frame.server_name)?;
    answer_status(asked, &asked.view, &service).await
}

async fn answer_status(asked: &Asked, view: &MeshView, service: &ServiceView) -> Result<(), FrameError> {
    let Asked { broker, caller, .. } = asked;
    let service = ServiceStatus {
        drift: approvals::drift(broker, caller, service).await?,
        egress: audit::egress(broker, caller, service).await?,
        vault: deploy::uses(broker, (caller, view), service).await?,
        ..describe::status(&broker.observed, view, caller, service)
    };
    asked.answer(&McpStatusResult { service }).await;
    Ok(())
}

pub async fn network(asked: &Asked, frame: McpNetwork) -> Result<Change, FrameError> {
    Ok(deploy::change_network(&asked.broker, &asked.caller, &asked.view, &frame).await?)
}

/// Answers how the service is after it.
pub async fn approve(asked: &Asked, frame: McpApprove) -> Result<(), FrameError> {
    let McpApprove { server_name, digest } = frame;
    let service = asked.view.visible(&asked.caller, &server_name)?;
    approvals::approve(&asked.broker, &asked.caller, &service, &digest).await?;
    let view = asked.broker.views.of(&asked.caller.mesh).await?;
    let service = view.visible(&asked.caller, &server_name)?;
    answer_status(asked, &view, &service).await
}

/// What the runner is: asked now, or what it said when it connected.
pub async fn runner(asked: &Asked) -> Result<(), FrameError> {
    let runner = match asked.broker.observed.link() {
        Link::Away => None,
        Link::Up(known) => match timeout(RUNNER_PATIENCE, asked.broker.runner.health()).await {
            Ok(Ok(health)) => Some(health),
            _ => Some((*known).clone()),
        },
    };
    asked.answer(&RunnerStatusResult { runner }).await;
    Ok(())
}

pub async fn catalog(asked: &Asked) -> Result<(), FrameError> {
    let services = asked
        .view
        .visible_to(&asked.caller)
        .map(|service| describe::status(&asked.broker.observed, &asked.view, &asked.caller, service))
        .collect();
    asked.answer(&McpCatalogResult { services }).await;
    Ok(())
}

pub async fn schema(asked: &Asked, frame: McpSchema) -> Result<(), FrameError> {
    let McpSchema { server_name, tool_name } = frame;
    let service = asked.view.visible(&asked.caller, &server_name)?;
    asked.answer(&describe::schema(&service, &asked.caller, tool_name.as_deref())).await;
    Ok(())
}
