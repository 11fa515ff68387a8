//! What may be lent: the checked form of `mcp_register`.
//!
//! Here: names, lengths, the form of tools. Not here: who may lend, and whose a name is.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use wire::depth::{MAX_DEPTH, is_too_deep};
use wire::peer::live::McpRegister;
use wire::{ErrorCode, RawJson, ServiceName};

use crate::error::FrameError;

pub const MAX_TOOLS: usize = 1000;
pub const MAX_TOOLS_BYTES: usize = 1 << 20;
const MAX_DESCRIPTION: usize = 2000;
const MAX_TOOL_NAME: usize = 128;

/// What a member wants to lend.
#[derive(Debug)]
pub struct Offer {
    pub name: ServiceName,
    pub description: String,
    pub tools: Arc<[RawJson]>,
    pub persistent: bool,
}

impl Offer {
    /// # Errors
    /// `invalid_name`, `invalid_args`, `too_large`.
    pub fn read(frame: McpRegister) -> Result<Self, FrameError> {
        let McpRegister { server_name, description, tools, persistent } = frame;
        let name = ServiceName::parse(&server_name).ok().filter(ServiceName::is_plain);
        let name = name.ok_or_else(|| {
            let rule = "1-64 chars, alphanumeric/hyphens/underscores, starting with alphanumeric, no `__`, not ending in `_`";
            FrameError::new(ErrorCode::InvalidName, format!("serverName: {rule}"))
        })?;
        if description.chars().count() > MAX_DESCRIPTION {
            return Err(FrameError::invalid(format!("description: at most {MAX_DESCRIPTION} characters")));
        }
        if tools.len() > MAX_TOOLS {
            return Err(FrameError::new(ErrorCode::TooLarge, format!("tools: at most {MAX_TOOLS}")));
        }
        if bytes(&tools) > MAX_TOOLS_BYTES {
            let message = format!("tools: at most {MAX_TOOLS_BYTES} bytes in all");
            return Err(FrameError::new(ErrorCode::TooLarge, message));
        }
        if tools.iter().any(|tool| is_too_deep(tool.get().as_bytes())) {
            return Err(FrameError::invalid(format!("tools: nested at most {MAX_DEPTH} deep")));
        }
        let mut names = HashSet::new();
        for (at, tool) in tools.iter().enumerate() {
            let name = tool_name(tool).filter(|name| (1..=MAX_TOOL_NAME).contains(&name.chars().count()));
            let name = name.ok_or_else(|| {
                let rule = format!("an object with a `name` of 1 to {MAX_TOOL_NAME} characters");
                FrameError::invalid(format!("tools[{at}]: {rule}"))
            })?;
            if !names.insert(name) {
                return Err(FrameError::invalid(format!("tools[{at}]: a second tool of the same name")));
            }
        }
        Ok(Self { name, description, tools: tools.into(), persistent })
    }
}

/// Bytes that a list of tools takes.
pub fn bytes(tools: &[RawJson]) -> usize {
    tools.iter().map(|tool| tool.get().len()).sum()
}

pub fn tool_name(tool: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    serde_json::from_str::<Named>(tool.get()).ok().map(|tool| tool.name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(frame: Value) -> Result<Offer, ErrorCode> {
        let frame = serde_json::from_value(frame).expect("a frame");
        Offer::read(frame).map_err(|error| error.code)
    }

    #[test]
    fn an_offer_has_a_service_name_and_tools_that_are_told_apart() {
        let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
        let frame =
            |name: &str, tools: Vec<Value>| json!({"serverName": name, "description": "", "tools": tools});
        let good = read(frame("mine", vec![tool("a"), tool("b")])).expect("is fine");
        assert_eq!((good.name.as_str(), good.tools.len(), good.persistent), ("mine", 2, false));
        for name in ["", "a__b", "a b", &format!("x.{}", "A".repeat(32))] {
            assert_eq!(read(frame(name, Vec::new())).err(), Some(ErrorCode::InvalidName), "{name}");
        }
        let deep: Value = serde_json::from_str(&format!(
            r#"{{"name":"t","x":{}{}}}"#,
            "[".repeat(MAX_DEPTH),
            "]".repeat(MAX_DEPTH)
        ))
        .expect("JSON");
        for bad in [json!("x"), json!({}), json!({"name": ""}), json!({"name": "n".repeat(129)}), deep] {
            assert_eq!(read(frame("mine", vec![bad])).err(), Some(ErrorCode::InvalidArgs));
        }
        assert_eq!(read(frame("mine", vec![tool("a"), tool("a")])).err(), Some(ErrorCode::InvalidArgs));
        let many = (0..=MAX_TOOLS).map(|n| tool(&format!("t{n}"))).collect();
        assert_eq!(read(frame("mine", many)).err(), Some(ErrorCode::TooLarge));
        let large = json!({"name": "t", "description": "x".repeat(MAX_TOOLS_BYTES)});
        assert_eq!(read(frame("mine", vec![large])).err(), Some(ErrorCode::TooLarge));
    }
}
