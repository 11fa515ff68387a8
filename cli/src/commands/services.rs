//! `ls`, `status`, `scope`.

use client::{ClientError, Connection};
use serde::Serialize;
use wire::ErrorCode;
use wire::peer::hosting::{
    McpCatalog, McpCatalogResult, McpScope, McpScopeResult, McpStatus, McpStatusResult, ServiceStatus,
};
use wire::peer::live::{LiveServer, McpList, McpListResult};

use super::ask;
use super::card::{HEADER, card, row, scope_words};
use super::lent;
use crate::args::ScopeArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::units;

/// What `ls --json` prints.
#[derive(Serialize)]
struct Listed {
    services: Vec<ServiceStatus>,
    live: Vec<LiveServer>,
}

pub async fn list(here: &Here) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let found = everything(here, &connection).await;
    connection.close().await;
    let found = found?;
    if here.out.json {
        return here.out.document(&found);
    }
    let Listed { services, live } = found;
    if services.is_empty() {
        here.out.remark("no services that you may see; deploy one: claudemesh deploy NAME -- npx -y PACKAGE");
    } else {
        let now = units::now_ms();
        here.out.line(table(&HEADER, services.iter().map(|service| row(service, now)).collect()));
    }
    if !live.is_empty() {
        here.out.line(table(&lent::HEADER, live.iter().map(lent::row).collect()));
    }
    Ok(())
}

async fn everything(here: &Here, connection: &Connection) -> Result<Listed, Failure> {
    let McpCatalogResult { mut services } = connection.request(&McpCatalog {}).await?;
    if !here.out.json {
        add_marks(connection, &mut services).await;
    }
    let live = match connection.request::<_, McpListResult>(&McpList {}).await {
        Ok(found) => found.servers,
        // A broker of an earlier version.
        Err(ClientError::Broker { code: Some(ErrorCode::UnknownMessageType), .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(Listed { services, live })
}

/// The list leaves out what the broker must read for each service: refused connections and drift. Those who may manage a
/// service should see at a glance that it has some.
async fn add_marks(connection: &Connection, services: &mut [ServiceStatus]) {
    for service in services.iter_mut().filter(|service| service.manageable) {
        let frame = McpStatus { server_name: service.name.clone() };
        match connection.request::<_, McpStatusResult>(&frame).await {
            Ok(found) => (service.egress, service.drift) = (found.service.egress, found.service.drift),
            // It may have been removed meanwhile: the list is good without its marks. A lost link has no more to give.
            Err(error) if error.is_link_loss() => return,
            Err(_) => {}
        }
    }
}

pub async fn status(here: &Here, name: &str) -> Result<(), Failure> {
    let asked: Result<McpStatusResult, Failure> =
        ask(here, &McpStatus { server_name: name.to_owned() }).await;
    let found = match asked {
        Ok(found) => found,
        Err(failure) => {
            let server = lent::instead(here, failure, name).await?;
            if here.out.json {
                return here.out.document(&server);
            }
            here.out.line(lent::card(&server));
            return Ok(());
        }
    };
    if here.out.json {
        return here.out.document(&found.service);
    }
    here.out.line(card(&found.service, units::now_ms()));
    Ok(())
}

pub async fn scope(here: &Here, args: &ScopeArgs) -> Result<(), Failure> {
    let wanted = args.audience()?;
    let is_change = wanted.is_some();
    let frame = McpScope { server_name: args.name.clone(), scope: wanted };
    let found: McpScopeResult = ask(here, &frame).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    let word = if is_change { "is now seen by" } else { "is seen by" };
    here.out.line(format!("{} {word} {}", args.name, scope_words(&found.scope)));
    Ok(())
}
