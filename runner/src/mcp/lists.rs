//! Everything a ready server offers: all pages of its tools, prompts, resources and resource templates.
//!
//! Here: paging and its limits. Not here: what the catalog makes of it.
//! Invariant: each item is kept with the bytes it came with.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use wire::report::Lists;
use wire::{ErrorCode, Generation, RawJson};

use super::client::{CallError, Client, Reply};
use super::frame;
use super::handshake::{Greeting, error_message};

const MAX_PAGES: usize = 1000;
const MAX_TOOLS: usize = 1000;
const MAX_BYTES: usize = 4 << 20;
const METHOD_NOT_FOUND: i64 = -32601;

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("the server lists more than {MAX_TOOLS} tools")]
    TooManyTools,
    #[error("the server's lists are larger than {} MiB or {MAX_PAGES} pages", MAX_BYTES >> 20)]
    TooLong,
    #[error("the server refused `{method}`: {message}")]
    Refused { method: &'static str, message: String },
    #[error("the server's answer to `{method}` is not valid MCP: {why}")]
    Invalid { method: &'static str, why: String },
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ListError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooManyTools | Self::TooLong => ErrorCode::TooManyTools,
            Self::Refused { .. } | Self::Invalid { .. } => ErrorCode::BadProtocol,
            Self::Call(CallError::Silent(_)) => ErrorCode::StartTimeout,
            Self::Call(e) => e.code(),
        }
    }
}

/// Reads what the greeting says is there. `page_limit` bounds the wait for one page.
pub async fn read_all(
    client: &Client,
    greeting: &Greeting,
    generation: Generation,
    page_limit: Duration,
) -> Result<Lists, ListError> {
    let mut reader = Reader { client, page_limit, bytes: 0, pages: 0 };
    let offers = greeting.offers;
    let tools = if offers.tools { reader.all("tools/list").await? } else { vec![] };
    let prompts = if offers.prompts { reader.all("prompts/list").await? } else { vec![] };
    let (resources, resource_templates) = if offers.resources {
        (reader.all("resources/list").await?, reader.all("resources/templates/list").await?)
    } else {
        (vec![], vec![])
    };
    Ok(Lists {
        generation,
        protocol: greeting.protocol.clone(),
        server_info: greeting.server_info.clone(),
        capabilities: greeting.capabilities.clone(),
        instructions: greeting.instructions.clone(),
        tools,
        prompts,
        resources,
        resource_templates,
    })
}

struct Reader<'a> {
    client: &'a Client,
    page_limit: Duration,
    bytes: usize,
    pages: usize,
}

/// One page; which of the lists is there depends on the method.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    #[serde(borrow, default)]
    tools: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    prompts: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    resources: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    resource_templates: Option<Vec<&'a RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
}

impl Reader<'_> {
    async fn all(&mut self, method: &'static str) -> Result<Vec<RawJson>, ListError> {
        let mut items: Vec<RawJson> = vec![];
        let mut cursor: Option<String> = None;
        loop {
            let params = cursor.as_deref().map(|c| format!(r#"{{"cursor":{}}}"#, frame::quote(c)));
            let answer = self.client.ask(method, params.as_deref(), self.page_limit).await?;
            let bytes = match answer {
                Reply::Result(bytes) => bytes,
                // It announced the capability and lacks the method: `resources` without templates is common.
                Reply::Error(error) if error_code(&error) == METHOD_NOT_FOUND => return Ok(items),
                Reply::Error(error) => {
                    return Err(ListError::Refused { method, message: error_message(&error) });
                }
            };
            let page: Page<'_> = serde_json::from_slice(&bytes)
                .map_err(|e| ListError::Invalid { method, why: e.to_string() })?;
            let next = page.next_cursor.clone();
            self.add(&mut items, method, page)?;
            // An empty or repeated cursor would never end; some servers send them on the last page.
            if next.is_none() || next == cursor || next.as_deref() == Some("") {
                return Ok(items);
            }
            cursor = next;
        }
    }

    fn add(
        &mut self,
        items: &mut Vec<RawJson>,
        method: &'static str,
        page: Page<'_>,
    ) -> Result<(), ListError> {
        let listed = match method {
            "tools/list" => page.tools,
            "prompts/list" => page.prompts,
            "resources/list" => page.resources,
            _ => page.resource_templates,
        };
        let listed = listed
            .ok_or_else(|| ListError::Invalid { method, why: "the list itself is missing".to_owned() })?;
        self.pages += 1;
        self.bytes += listed.iter().map(|item| item.get().len()).sum::<usize>();
        if method == "tools/list" && items.len() + listed.len() > MAX_TOOLS {
            return Err(ListError::TooManyTools);
        }
        if self.bytes > MAX_BYTES || self.pages > MAX_PAGES {
            return Err(ListError::TooLong);
        }
        for item in listed {
            if method == "tools/list" && !has_name(item) {
                return Err(ListError::Invalid { method, why: "a tool has no name".to_owned() });
            }
            items.push(item.to_owned());
        }
        Ok(())
    }
}

fn has_name(tool: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    serde_json::from_str::<Named>(tool.get()).is_ok_and(|tool| !tool.name.is_empty())
}

fn error_code(error: &[u8]) -> i64 {
    #[derive(Deserialize)]
    struct Error {
        code: i64,
    }
    serde_json::from_slice::<Error>(error).map_or(0, |e| e.code)
}

/// Kinds of lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
}

impl Kinds {
    pub fn and(self, more: Self) -> Self {
        Self {
            tools: self.tools || more.tools,
            prompts: self.prompts || more.prompts,
            resources: self.resources || more.resources,
        }
    }

    /// Of which kind the lists are not what they were.
    pub fn that_differ(before: Option<&Lists>, now: &Lists) -> Self {
        let of = |list: fn(&Lists) -> &[RawJson]| !is_same(before.map_or(&[], list), list(now));
        Self {
            tools: of(|lists| &lists.tools),
            prompts: of(|lists| &lists.prompts),
            resources: of(|lists| &lists.resources) || of(|lists| &lists.resource_templates),
        }
    }
}

fn is_same(a: &[RawJson], b: &[RawJson]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.get() == b.get())
}

/// Whether both say the same, byte for byte.
pub fn is_equal(a: &Lists, b: &Lists) -> bool {
    let Lists {
        generation,
        protocol,
        server_info,
        capabilities,
        instructions,
        tools,
        prompts,
        resources,
        resource_templates,
    } = a;
    (generation, protocol, instructions) == (&b.generation, &b.protocol, &b.instructions)
        && server_info.get() == b.server_info.get()
        && capabilities.get() == b.capabilities.get()
        && is_same(tools, &b.tools)
        && is_same(prompts, &b.prompts)
        && is_same(resources, &b.resources)
        && is_same(resource_templates, &b.resource_templates)
}
