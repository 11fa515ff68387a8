//! `ls`, `status`, `scope`.

use client::Connection;
use wire::peer::hosting::{
    McpCatalog, McpCatalogResult, McpScope, McpScopeResult, McpStatus, McpStatusResult, ServiceStatus,
};

use super::ask;
use super::card::{HEADER, card, row, scope_words};
use crate::args::ScopeArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::units;

pub async fn list(here: &Here) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let mut found: McpCatalogResult = match connection.request(&McpCatalog {}).await {
        Ok(found) => found,
        Err(error) => {
            connection.close().await;
            return Err(error.into());
        }
    };
    if !here.out.json {
        add_marks(&connection, &mut found.services).await;
    }
    connection.close().await;
    if here.out.json {
        return here.out.document(&found);
    }
    if found.services.is_empty() {
        here.out.remark("no services that you may see; deploy one: claudemesh deploy NAME -- npx -y PACKAGE");
        return Ok(());
    }
    let now = units::now_ms();
    here.out.line(table(&HEADER, found.services.iter().map(|service| row(service, now)).collect()));
    Ok(())
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
    let found: McpStatusResult = ask(here, &McpStatus { server_name: name.to_owned() }).await?;
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
