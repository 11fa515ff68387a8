//! The fastest MCP server that one can reasonably write: `echo` over stdio, one thread, nothing else. `fill` answers with as
//! many bytes of text as it is asked for.
//!
//! It makes the overhead of the platform visible, because it has almost none of its own.

use std::io::{BufRead as _, BufWriter, Write as _};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<&'a str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    name: Option<&'a str>,
}

#[derive(Deserialize)]
struct Fill {
    bytes: usize,
}

fn main() -> std::io::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut output = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut line = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Ok(request) = serde_json::from_str(&line) {
            answer(&mut output, &request)?;
            output.flush()?;
        }
    }
}

/// Letters and digits without a pattern, as in an encoded file: what a search for text can't skip. Made once.
fn text(bytes: usize) -> &'static str {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| {
        let mut state: u64 = 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(LETTERS[usize::try_from(state >> 58).unwrap_or_default()])
        };
        (0..bytes).map(next).collect()
    });
    &text[..bytes.min(text.len())]
}

fn answer(output: &mut impl std::io::Write, request: &Request<'_>) -> std::io::Result<()> {
    let (Some(id), Some(method)) = (request.id, request.method) else { return Ok(()) };
    match method {
        "tools/call" => {
            let call = request.params.and_then(|params| serde_json::from_str::<Call<'_>>(params.get()).ok());
            let filled =
                call.as_ref().filter(|call| call.name == Some("fill")).and_then(|call| call.arguments);
            if let Some(Fill { bytes }) = filled.and_then(|fill| serde_json::from_str(fill.get()).ok()) {
                return writeln!(
                    output,
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{}"}}]}}}}"#,
                    text(bytes)
                );
            }
            let echoed = call.and_then(|call| call.arguments).map_or("{}", RawValue::get);
            writeln!(
                output,
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"ok"}}],"structuredContent":{echoed}}}}}"#
            )
        }
        "initialize" => writeln!(
            output,
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-11-25","capabilities":{{"tools":{{}}}},"serverInfo":{{"name":"echo","version":"1"}}}}}}"#
        ),
        "tools/list" => writeln!(
            output,
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{{"name":"echo","inputSchema":{{"type":"object"}}}},{{"name":"fill","inputSchema":{{"type":"object"}}}}]}}}}"#
        ),
        "ping" => writeln!(output, r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
        _ => writeln!(
            output,
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"method not found"}}}}"#
        ),
    }
}
