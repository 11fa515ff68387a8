//! A fixture server of both eras, run as a child.

use super::*;
use serde_json::json;
use serde_json::value::RawValue;

/// `change` adds a tool, `die` ends it with code 3, `ask` asks for roots and sampling and tells the answers, `hang` never answers,
/// `pid` tells whose child it started.
const SERVER: &str = r#"
import json, os, subprocess, sys
modern = len(sys.argv) > 1 and sys.argv[1] == 'modern'
names, child = ['echo', 'die'], None
def say(**m): print(json.dumps({'jsonrpc': '2.0', **m}), flush=True)
def hear(): return json.loads(sys.stdin.readline() or sys.exit())
while True:
    m = hear()
    method, id, p = m.get('method'), m.get('id'), m.get('params') or {}
    if modern and p.get('_meta', {}).get('io.modelcontextprotocol/protocolVersion') != '2026-07-28' and id is not None:
        say(id=id, error={'code': -32022, 'message': 'Unsupported protocol version'})
    elif method in ('initialize', 'server/discover'):
        say(id=id, result={'protocolVersion': '2025-11-25', 'supportedVersions': ['2026-07-28'], 'capabilities': {'tools': {}}})
    elif method == 'tools/list':
        at = int(p.get('cursor', 0))
        page = {'tools': [{'name': names[at], 'inputSchema': {'type': 'object'}}]}
        if at + 1 < len(names): page['nextCursor'] = str(at + 1)
        say(id=id, result=page)
    elif method == 'tools/call':
        tool, args = p['name'], p['arguments']
        if tool == 'die': sys.exit(3)
        if tool == 'hang': continue
        if tool == 'bad': say(id=id, error={'code': -32602, 'message': 'no such tool'}); continue
        if tool == 'change':
            names.append('late')
            say(method='notifications/tools/list_changed')
        answers = {}
        if tool == 'ask':
            for what in ('roots/list', 'sampling/createMessage'):
                say(id=what, method=what)
                back = hear()
                answers[what] = back.get('result', back.get('error', {}).get('code'))
        if tool == 'pid':
            child = child or subprocess.Popen(['sleep', '1000'])
            answers = child.pid
        say(id=id, result={'content': [], 'args': args, 'answers': answers, 'modern': modern})
"#;

const LONG: Duration = Duration::from_secs(60);

async fn started(args: &[&str]) -> Option<(LocalServer, Vec<RawJson>)> {
    let words = [&["python3", "-c", SERVER][..], args].concat();
    match LocalServer::start(words.into_iter().map(str::to_owned).collect()).await {
        Ok(started) => Some(started),
        Err(LocalError::Spawn { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "CI has no python3");
            println!("skipped: no python3");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn call(server: &LocalServer, tool: &str, args: &str) -> Result<serde_json::Value, String> {
    let args = RawValue::from_string(args.to_owned()).unwrap();
    let result = server.call(tool, &args, LONG).await?;
    Ok(serde_json::from_str(result.get()).unwrap())
}

fn names(tools: &[RawJson]) -> Vec<String> {
    let name = |tool: &RawJson| raw::Members::read(tool.get()).unwrap().text("name").unwrap();
    tools.iter().map(name).collect()
}

#[tokio::test]
async fn a_server_of_either_era_lists_all_pages_and_answers_calls() {
    for (args, is_modern) in [(&[][..], false), (&["modern"][..], true)] {
        let Some((server, tools)) = started(args).await else { return };
        assert_eq!(names(&tools), ["echo", "die"]);
        let answer = call(&server, "echo", r#"{"a":1.0}"#).await.unwrap();
        assert_eq!((&answer["args"], &answer["modern"]), (&json!({"a": 1.0}), &json!(is_modern)));
        assert_eq!(call(&server, "bad", "{}").await.unwrap_err(), "no such tool");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_asks_its_client_hears_of_no_roots_and_of_an_unknown_method() {
    let Some((server, _)) = started(&[]).await else { return };
    let answer = call(&server, "ask", "{}").await.unwrap();
    assert_eq!(answer["answers"], json!({"roots/list": {"roots": []}, "sampling/createMessage": -32601}));
}

#[tokio::test]
async fn a_change_of_its_tools_is_told() {
    let Some((server, _)) = started(&[]).await else { return };
    let mut tools = server.tools();
    tools.mark_unchanged();
    call(&server, "change", "{}").await.unwrap();
    timeout(LONG, tools.changed()).await.unwrap().unwrap();
    assert_eq!(names(&tools.borrow()), ["echo", "die", "late"]);
}

#[tokio::test]
async fn a_server_that_ends_is_started_again_and_the_next_call_waits_for_it() {
    let Some((server, _)) = started(&[]).await else { return };
    let mut falls = server.falls();
    assert_eq!(
        call(&server, "die", "{}").await.unwrap_err(),
        "the server ended while it was working on this"
    );
    timeout(LONG, falls.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert_eq!(falls.borrow().as_deref(), Some("the server ended (exit code 3)"));
    assert!(call(&server, "echo", "{}").await.is_ok());
}

#[tokio::test]
async fn a_call_has_its_deadline() {
    let Some((server, _)) = started(&[]).await else { return };
    let args = RawValue::from_string("{}".to_owned()).unwrap();
    let error = server.call("hang", &args, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(error, "the server did not answer within 0 s");
}

#[tokio::test]
async fn what_it_started_ends_with_it() {
    let Some((server, _)) = started(&[]).await else { return };
    let answer = call(&server, "pid", "{}").await.unwrap();
    let child = i32::try_from(answer["answers"].as_i64().unwrap()).unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{child}/stat")).ok();
    assert!(stat().is_some());
    drop(server);
    // A killed process may stay as a zombie until its new parent looks.
    let is_alive =
        || stat().is_some_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"));
    let gone = async {
        while is_alive() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}

#[tokio::test]
async fn a_first_start_that_fails_says_why() {
    let start = async |argv: &[&str]| {
        let started = LocalServer::start(argv.iter().map(|word| (*word).to_owned()).collect()).await;
        started.err().unwrap().to_string()
    };
    assert_eq!(start(&[]).await, "there is no command to run");
    assert!(start(&["/nowhere/at/all"]).await.starts_with("can not run `/nowhere/at/all`"));
    assert_eq!(start(&["false"]).await, "the server ended (exit code 1)");
}
