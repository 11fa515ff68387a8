//! What a service offers, in the words that its client gets.

use wire::peer::hosting::McpSchemaResult;
use wire::{RawJson, ServiceName};

use crate::front::{About, Changes};
use crate::raw::{Members, Object, raw, value};

/// The revision from which on servers speak without a handshake.
const MODERN: &str = "2026-07-28";
/// Neither the broker nor we carry them.
const TASKS: &str = "io.modelcontextprotocol/tasks";

/// Results of the list methods, and who the service is.
#[derive(Debug, Clone)]
pub(super) struct Lists {
    pub about: About,
    tools: RawJson,
    prompts: RawJson,
    resources: RawJson,
    templates: RawJson,
    has_tools: bool,
    has_prompts: bool,
    has_resources: bool,
}

impl Lists {
    /// Nothing is known: whatever comes later is a change of a list.
    pub(super) fn unknown(name: &ServiceName) -> Self {
        Self::from(McpSchemaResult { server_name: name.to_string(), ..McpSchemaResult::default() })
    }

    /// The service is gone: nothing is left of its lists, and it is still who it was.
    pub(super) fn emptied(&self) -> Self {
        Self {
            tools: list("tools", &[]),
            prompts: list("prompts", &[]),
            resources: list("resources", &[]),
            templates: list("resourceTemplates", &[]),
            ..self.clone()
        }
    }

    /// The result of a list method; `None`: the service does not know the method.
    pub(super) fn of(&self, method: &str) -> Option<&RawJson> {
        match method {
            "tools/list" => self.has_tools.then_some(&self.tools),
            "prompts/list" => self.has_prompts.then_some(&self.prompts),
            "resources/list" => self.has_resources.then_some(&self.resources),
            "resources/templates/list" => self.has_resources.then_some(&self.templates),
            _ => None,
        }
    }

    /// Counts what differs.
    pub(super) fn changes_since(&self, old: &Self, counted: Changes) -> Changes {
        let grown = |differs: bool, count: u64| count + u64::from(differs);
        Changes {
            tools: grown(self.tools.get() != old.tools.get(), counted.tools),
            prompts: grown(self.prompts.get() != old.prompts.get(), counted.prompts),
            resources: grown(
                self.resources.get() != old.resources.get() || self.templates.get() != old.templates.get(),
                counted.resources,
            ),
        }
    }
}

impl From<McpSchemaResult> for Lists {
    fn from(schema: McpSchemaResult) -> Self {
        let McpSchemaResult {
            server_name,
            tools,
            names: _,
            prompts,
            resources,
            resource_templates,
            server_info,
            capabilities,
            instructions,
            protocol,
        } = schema;
        // Before its first start nobody knows what it will offer.
        let capabilities = capabilities
            .map_or_else(|| raw(r#"{"tools":{},"prompts":{},"resources":{}}"#.to_owned()), without_tasks);
        let server_info =
            server_info.unwrap_or_else(|| value(&serde_json::json!({ "name": server_name, "version": "0" })));
        let has = |name: &str| {
            Members::read(capabilities.get())
                .and_then(|all| all.get(name).map(|one| one.get() != "null"))
                .unwrap_or(false)
        };
        Self {
            has_tools: has("tools"),
            has_prompts: has("prompts"),
            has_resources: has("resources"),
            tools: list("tools", &tools),
            prompts: list("prompts", &prompts),
            resources: list("resources", &resources),
            templates: list("resourceTemplates", &resource_templates),
            about: About {
                server_info,
                capabilities,
                instructions,
                is_modern: protocol.is_some_and(|protocol| protocol.as_str() >= MODERN),
            },
        }
    }
}

fn list(name: &str, items: &[RawJson]) -> RawJson {
    let size: usize = items.iter().map(|item| item.get().len() + 1).sum();
    let mut text = String::with_capacity(size + 2);
    text.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(item.get());
    }
    text.push(']');
    let mut object = Object::with_capacity(text.len() + name.len() + 8);
    object.put(name, &text);
    object.end()
}

fn without_tasks(capabilities: RawJson) -> RawJson {
    let Some(members) = Members::read(capabilities.get()) else { return capabilities };
    let extensions = members.get("extensions").and_then(|extensions| Members::read(extensions.get()));
    let extensions = extensions.filter(|extensions| extensions.get(TASKS).is_some());
    if extensions.is_none() && members.get("tasks").is_none() {
        return capabilities;
    }
    let kept = extensions.map(|extensions| extensions.write(|key| key != TASKS, &[]));
    let put: Vec<(&str, &str)> = kept.iter().map(|kept| ("extensions", kept.get())).collect();
    members.write(|key| key != "tasks", &put)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(capabilities: &str) -> Lists {
        let schema = format!(
            r#"{{"server_name":"e","tools":[{{ "a":1.0e2}},{{"b":"\u00e9"}}],"names":[],"prompts":[],"resources":[],
            "resource_templates":[],"capabilities":{capabilities},"protocol":"2026-07-28"}}"#
        );
        Lists::from(serde_json::from_str::<McpSchemaResult>(&schema).unwrap())
    }

    #[test]
    fn items_stay_as_the_server_wrote_them() {
        let lists = of(r#"{"tools":{}}"#);
        assert_eq!(lists.of("tools/list").unwrap().get(), r#"{"tools":[{ "a":1.0e2},{"b":"\u00e9"}]}"#);
        assert!(lists.of("prompts/list").is_none(), "it never said that it has prompts");
        assert!(lists.about.is_modern);
    }

    #[test]
    fn tasks_are_not_promised() {
        let lists = of(
            r#"{"tasks":{"list":{}},"tools":{"x":1.0},"extensions":{"io.modelcontextprotocol/tasks":{},"e/f":{"g":1.0}}}"#,
        );
        assert_eq!(lists.about.capabilities.get(), r#"{"tools":{"x":1.0},"extensions":{"e/f":{"g":1.0}}}"#);
        let plain = r#"{"tools": {}}"#;
        assert_eq!(of(plain).about.capabilities.get(), plain);
    }

    #[test]
    fn only_what_differs_is_counted() {
        let (old, none) = (of(r#"{"tools":{}}"#), Changes::default());
        assert_eq!(old.changes_since(&of(r#"{"tools":{"y":1}}"#), none), none);
        let emptied = old.emptied();
        assert_eq!(emptied.changes_since(&old, none), Changes { tools: 1, ..none });
        assert_eq!(emptied.of("tools/list").unwrap().get(), r#"{"tools":[]}"#);
    }
}
