//! The management tools: which there are, and from a call to the function that does it.
//!
//! Here: the list, reading input, dispatch. Below: what each does.
//! Invariant: an input that is not understood does nothing and is told what would be; nothing is accepted and then ignored.

mod definitions;
mod deploy;
mod live;
mod peers;
mod services;
mod skills;
mod vault;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IntoDeserializer, value::StrDeserializer};
use serde_json::value::RawValue;
use wire::RawJson;

use super::passing::{call_params, pass_on};
use super::roster::Roster;
use super::words::{Refusal, told};
use super::{Mesh, splice};
use crate::front::{self, Exchange};
use crate::stdio::Answer;

/// Every management tool by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tool {
    MeshMcpDeploy,
    MeshMcpUndeploy,
    MeshMcpUpdate,
    MeshMcpLogs,
    MeshMcpScope,
    MeshMcpSchema,
    MeshMcpCatalog,
    MeshToolCall,
    MeshMcpRegister,
    MeshMcpRespond,
    MeshMcpCalls,
    MeshMcpList,
    MeshMcpRemove,
    VaultSet,
    VaultList,
    VaultDelete,
    ShareSkill,
    GetSkill,
    ListSkills,
    RemoveSkill,
    MeshSkillDeploy,
    ListPeers,
    SetStatus,
}

impl Tool {
    fn named(name: &str) -> Option<Self> {
        let name: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
        Self::deserialize(name).ok()
    }
}

/// `tools/list`: ours first, then everybody's.
pub fn list(roster: &Roster) -> RawJson {
    let mut text = String::from("{\"tools\":[");
    text.push_str(definitions::all());
    for definition in roster.definitions() {
        text.push(',');
        text.push_str(definition.get());
    }
    text.push_str("]}");
    crate::raw::raw(text)
}

/// The service that an input is about.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    server_name: String,
}

/// No members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolCall {
    server_name: String,
    tool_name: String,
    #[serde(default)]
    args: Option<RawJson>,
}

/// Reads a tool's arguments. The message names the field and the rule.
fn read<T: DeserializeOwned>(arguments: Option<&RawValue>) -> Result<T, Refusal> {
    let text = arguments.map(RawValue::get).filter(|text| *text != "null").unwrap_or("{}");
    serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        // A place in one line of JSON helps nobody.
        let rule = text.rsplit_once(" at line ").map_or(text.as_str(), |(rule, _)| rule);
        Refusal(format!("the arguments are not as they should be: {rule} (invalid_args)"))
    })
}

impl Mesh {
    pub(super) async fn call(&self, exchange: &Exchange) -> Answer {
        let params = exchange.params.as_deref();
        let Some((params, name)) = params.and_then(|p| Some((p, splice::text_member(p, "name")?))) else {
            return Answer::Error(front::error(-32602, "`name` of the tool is missing"));
        };
        let arguments = splice::member(params, "arguments");
        match Tool::named(&name) {
            Some(Tool::MeshToolCall) => match read::<ToolCall>(arguments) {
                Ok(ToolCall { server_name, tool_name, args }) => {
                    match call_params(params, &tool_name, args.as_deref()) {
                        Some(params) => {
                            pass_on(&self.member.connection, exchange, &server_name, params).await
                        }
                        None => Answer::Error(front::error(-32602, "the params are no object")),
                    }
                }
                Err(refusal) => told(Err(refusal)),
            },
            Some(tool) => told(self.manage(tool, exchange, arguments).await),
            None => {
                let route = self.roster().route(&name);
                match route.and_then(|route| Some((splice::with_text(params, "name", &route.tool)?, route))) {
                    Some((params, route)) => {
                        pass_on(&self.member.connection, exchange, &route.server, params).await
                    }
                    None => Answer::Error(front::error(-32602, &format!("there is no tool `{name}`"))),
                }
            }
        }
    }

    /// The server that a call goes to, when it goes to another.
    pub(super) fn destination(&self, exchange: &Exchange) -> Option<String> {
        if exchange.method != "tools/call" {
            return None;
        }
        let params = exchange.params.as_deref()?;
        let name = splice::text_member(params, "name")?;
        match Tool::named(&name) {
            Some(Tool::MeshToolCall) => {
                splice::text_member(splice::member(params, "arguments")?, "server_name")
            }
            Some(_) => None,
            None => self.roster().route(&name).map(|route| route.server),
        }
    }

    async fn manage(
        &self,
        tool: Tool,
        exchange: &Exchange,
        input: Option<&RawValue>,
    ) -> Result<String, Refusal> {
        match tool {
            Tool::MeshMcpDeploy => self.deploy(exchange, read(input)?).await,
            Tool::MeshMcpUndeploy => self.undeploy(exchange, read(input)?).await,
            Tool::MeshMcpUpdate => self.update(exchange, read(input)?).await,
            Tool::MeshMcpLogs => self.logs(read(input)?).await,
            Tool::MeshMcpScope => self.scope(read(input)?).await,
            Tool::MeshMcpSchema => self.schema(read(input)?).await,
            Tool::MeshMcpCatalog => read(input).map(|Nothing {}| self.catalog())?.await,
            // Its answer is another server's, so it is passed on where the call came in.
            Tool::MeshToolCall => Err(Refusal("mesh_tool_call is passed on".to_owned())),
            Tool::MeshMcpRegister => self.register(read(input)?).await,
            Tool::MeshMcpRespond => self.respond(read(input)?).await,
            Tool::MeshMcpCalls => self.calls(read(input)?).await,
            Tool::MeshMcpList => read(input).map(|Nothing {}| self.live_list())?.await,
            Tool::MeshMcpRemove => self.unregister(read(input)?).await,
            Tool::VaultSet => self.vault_set(read(input)?).await,
            Tool::VaultList => read(input).map(|Nothing {}| self.vault_list())?.await,
            Tool::VaultDelete => self.vault_delete(read(input)?).await,
            Tool::ShareSkill => self.share_skill(read(input)?).await,
            Tool::GetSkill => self.get_skill(read(input)?).await,
            Tool::ListSkills => self.list_skills(read(input)?).await,
            Tool::RemoveSkill => self.remove_skill(read(input)?).await,
            Tool::MeshSkillDeploy => self.deploy_skill(read(input)?).await,
            Tool::ListPeers => read(input).map(|Nothing {}| self.list_peers())?.await,
            Tool::SetStatus => self.set_status(read(input)?).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defined_tool_is_one_that_can_be_called() {
        let listed = list(&Roster::default());
        let listed: serde_json::Value = serde_json::from_str(listed.get()).unwrap();
        let tools = listed["tools"].as_array().unwrap();
        let mut names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
        for tool in tools {
            let name = tool["name"].as_str().unwrap();
            assert!(Tool::named(name).is_some(), "{name}");
            assert!(name.len() <= 64 - "mcp__claudemesh__".len(), "{name} is too long for some clients");
            assert_eq!(tool["inputSchema"]["type"], "object", "{name}");
            assert_eq!(tool["inputSchema"]["additionalProperties"], false, "{name}");
            assert!(tool["description"].as_str().unwrap().len() > 40, "{name} says too little");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 23);
        assert_eq!(Tool::named("svc__a__b"), None);
    }

    #[test]
    fn a_wrong_argument_is_named_with_its_rule() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let refused =
            |text: &str| read::<ToolCall>(Some(&raw(text))).err().map(|Refusal(text)| text).unwrap();
        assert!(refused("{}").contains("missing field `server_name`"), "{}", refused("{}"));
        let unknown = refused(r#"{"server_name":"a","tool_name":"b","arg":{}}"#);
        assert!(unknown.contains("unknown field `arg`") && unknown.contains("`args`"), "{unknown}");
        assert!(read::<Nothing>(None).is_ok() && read::<Nothing>(Some(&raw("null"))).is_ok());
    }
}
