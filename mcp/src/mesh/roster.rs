//! What can be called in the mesh just now: the tools of hosted services and live servers, under the names that clients see.
//!
//! Here: the lists and the way from a name to its server. Not here: fetching them ([`super::keeper`]).
//! Invariant: a name that was listed for a tool leads to that tool, also after the lists changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use catalog::names::svc_name;
use serde_json::value::RawValue;
use wire::peer::hosting::McpSchemaResult;
use wire::peer::live::LiveServer;
use wire::{RawJson, ServiceName};

use super::splice;

/// Where a call of a listed name goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub server: String,
    pub tool: String,
}

/// Routes of names that are not listed any more are kept up to this many.
const MAX_ROUTES: usize = 20_000;

#[derive(Default)]
pub struct Roster {
    services: BTreeMap<String, Shelf>,
    live: BTreeMap<String, Shelf>,
    routes: HashMap<String, Route>,
    /// Services that answer in the era of 2026-07-28.
    modern: HashSet<String>,
}

/// The first revision of the modern era; revisions are dates.
const MODERN: &str = "2026-07-28";

/// The tools of one server.
#[derive(Default)]
struct Shelf {
    /// Definitions as the server wrote them, but for their names.
    definitions: Vec<RawJson>,
    names: Vec<String>,
}

impl Shelf {
    fn of(named: impl Iterator<Item = (String, RawJson)>) -> (Self, Vec<(String, String)>) {
        let mut shelf = Self::default();
        let mut tools = Vec::new();
        for (name, definition) in named {
            let (Some(tool), Some(renamed)) =
                (splice::text_member(&definition, "name"), splice::with_text(&definition, "name", &name))
            else {
                continue;
            };
            if shelf.names.contains(&name) {
                continue;
            }
            tools.push((name.clone(), tool));
            shelf.names.push(name);
            shelf.definitions.push(renamed);
        }
        (shelf, tools)
    }

    fn is_same(&self, other: &Self) -> bool {
        let text = |shelf: &'_ Self| shelf.definitions.iter().map(|d| d.get().to_owned()).collect::<Vec<_>>();
        text(self) == text(other)
    }
}

impl Roster {
    /// `true` when the list is another one now.
    pub fn put_service(&mut self, schema: McpSchemaResult) -> bool {
        let McpSchemaResult { server_name, tools, names, protocol, .. } = schema;
        if protocol.is_some_and(|protocol| protocol.as_str() >= MODERN) {
            self.modern.insert(server_name.clone());
        } else {
            self.modern.remove(&server_name);
        }
        let (shelf, tools) = Shelf::of(names.into_iter().zip(tools));
        self.learn(&server_name, tools);
        put(&mut self.services, server_name, shelf)
    }

    pub fn remove_service(&mut self, name: &str) -> bool {
        self.modern.remove(name);
        self.services.remove(name).is_some_and(|shelf| !shelf.names.is_empty())
    }

    /// Removes every service that is not among these.
    pub fn keep_services(&mut self, kept: &[String]) -> bool {
        let gone: Vec<String> = self.services.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        let mut has_changed = false;
        for name in gone {
            has_changed |= self.remove_service(&name);
        }
        has_changed
    }

    /// All live servers. One that is offline stays listed, as nothing is told when it goes: a call of it says since when.
    pub fn put_live(&mut self, servers: Vec<LiveServer>, is_ours: impl Fn(&str) -> bool) -> bool {
        let mut before = std::mem::take(&mut self.live);
        let mut changed = false;
        for LiveServer { name, tools, .. } in servers.into_iter().filter(|s| !is_ours(&s.name)) {
            let Ok(service) = ServiceName::parse(&name) else { continue };
            let named = tools.into_iter().filter_map(|tool| {
                let shown = svc_name(&service, &splice::text_member(&tool, "name")?);
                Some((shown, tool))
            });
            let (shelf, tools) = Shelf::of(named);
            self.learn(&name, tools);
            changed |= match before.remove(&name) {
                Some(old) => !old.is_same(&shelf),
                None => !shelf.names.is_empty(),
            };
            self.live.insert(name, shelf);
        }
        changed || before.values().any(|shelf| !shelf.names.is_empty())
    }

    fn learn(&mut self, server: &str, tools: Vec<(String, String)>) {
        if self.routes.len() + tools.len() > MAX_ROUTES {
            let listed: Vec<&String> = self.shelves().flat_map(|shelf| &shelf.names).collect();
            let listed: HashSet<String> = listed.into_iter().cloned().collect();
            self.routes.retain(|name, _| listed.contains(name));
        }
        for (name, tool) in tools {
            self.routes.insert(name, Route { server: server.to_owned(), tool });
        }
    }

    pub fn is_modern(&self, server: &str) -> bool {
        self.modern.contains(server)
    }

    fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        self.services.values().chain(self.live.values())
    }

    /// In an order that does not depend on chance.
    pub fn definitions(&self) -> impl Iterator<Item = &RawValue> {
        self.shelves().flat_map(|shelf| shelf.definitions.iter().map(|definition| &**definition))
    }

    /// Where a call of `name` goes. A name that was never listed here is taken at its word: its service may be newer than
    /// the list.
    pub fn route(&self, name: &str) -> Option<Route> {
        if let Some(route) = self.routes.get(name) {
            return Some(route.clone());
        }
        let (server, tool) = name.strip_prefix("svc__")?.split_once("__")?;
        ServiceName::parse(server).ok().filter(ServiceName::is_plain)?;
        (!tool.is_empty()).then(|| Route { server: server.to_owned(), tool: tool.to_owned() })
    }
}

fn put(shelves: &mut BTreeMap<String, Shelf>, name: String, shelf: Shelf) -> bool {
    let is_new = match shelves.get(&name) {
        Some(old) => !old.is_same(&shelf),
        None => !shelf.names.is_empty(),
    };
    shelves.insert(name, shelf);
    is_new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(server: &str, tools: &[(&str, &str)]) -> McpSchemaResult {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        McpSchemaResult {
            server_name: server.into(),
            tools: tools.iter().map(|(_, tool)| raw(tool)).collect(),
            names: tools.iter().map(|(name, _)| (*name).to_owned()).collect(),
            prompts: vec![],
            resources: vec![],
            resource_templates: vec![],
            server_info: None,
            capabilities: None,
            instructions: None,
            protocol: None,
        }
    }

    fn live(name: &str, online: bool, tools: &[&str]) -> LiveServer {
        let tool = |name: &&str| RawValue::from_string(format!(r#"{{"name":"{name}","x":1.0}}"#)).unwrap();
        LiveServer {
            name: name.into(),
            description: String::new(),
            hosted_by: "Ana".into(),
            tools: tools.iter().map(tool).collect(),
            online,
            offline_since: None,
            persistent: true,
            own: false,
        }
    }

    fn listed(roster: &Roster) -> Vec<&str> {
        roster.definitions().map(RawValue::get).collect()
    }

    #[test]
    fn only_a_list_that_differs_counts_as_changed() {
        let mut roster = Roster::default();
        let echo = ("svc__a__echo", r#"{"name":"echo","title":"T"}"#);
        assert!(!roster.put_service(schema("empty", &[])), "nothing was listed before and nothing is");
        assert!(roster.put_service(schema("a", &[echo])));
        assert!(!roster.put_service(schema("a", &[echo])));
        assert_eq!(listed(&roster), [r#"{"name":"svc__a__echo","title":"T"}"#]);
        assert!(roster.put_service(schema("a", &[("svc__a__echo", r#"{"name":"echo","title":"U"}"#)])));
        assert!(roster.keep_services(&["b".to_owned()]));
        assert!(!roster.keep_services(&[]));
        assert!(listed(&roster).is_empty());
    }

    #[test]
    fn a_listed_name_leads_to_its_tool_after_the_service_is_gone() {
        let mut roster = Roster::default();
        roster.put_service(schema("a", &[("svc__a__long_0123abcd", r#"{"name":"a long / odd name"}"#)]));
        roster.remove_service("a");
        let route = roster.route("svc__a__long_0123abcd").unwrap();
        assert_eq!((route.server.as_str(), route.tool.as_str()), ("a", "a long / odd name"));
    }

    #[test]
    fn a_name_that_was_never_listed_is_taken_at_its_word() {
        let roster = Roster::default();
        let route = roster.route("svc__new-one__do__it").unwrap();
        assert_eq!((route.server.as_str(), route.tool.as_str()), ("new-one", "do__it"));
        for bad in ["svc__", "svc__a", "svc__a__", "svc__a.b__c", "echo", "svc__../x__y"] {
            assert_eq!(roster.route(bad), None, "{bad}");
        }
    }

    #[test]
    fn live_servers_come_and_go_and_our_own_are_not_offered_to_us() {
        let mut roster = Roster::default();
        let ours = |name: &str| name == "mine";
        assert!(roster.put_live(vec![live("b", true, &["x"]), live("mine", true, &["y"])], ours));
        assert_eq!(listed(&roster), [r#"{"name":"svc__b__x","x":1.0}"#]);
        assert!(!roster.put_live(vec![live("b", true, &["x"])], ours));
        assert!(!roster.put_live(vec![live("b", false, &["x"])], ours), "offline: a call says so");
        assert!(roster.put_live(vec![], ours));
        assert!(listed(&roster).is_empty());
    }
}
