//! The fastest MCP server that one can reasonably write: `echo` over stdio, one thread, nothing else.
//!
//! It makes the overhead of the platform visible, because it has almost none of its own.

use std::io::{BufRead as _, BufWriter, Write as _};

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

fn answer(output: &mut impl std::io::Write, request: &Request<'_>) -> std::io::Result<()> {
    let (Some(id), Some(method)) = (request.id, request.method) else { return Ok(()) };
    match method {
        "tools/call" => {
            let call = request.params.and_then(|params| serde_json::from_str::<Call<'_>>(params.get()).ok());
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
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{{"name":"echo","inputSchema":{{"type":"object"}}}}]}}}}"#
        ),
        "ping" => writeln!(output, r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
        _ => writeln!(
            output,
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"method not found"}}}}"#
        ),
    }
}
