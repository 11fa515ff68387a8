//! What is written can be read, and what is taken out again leaves the text as it was.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry() -> Shape {
    Shape::fields([
        ("type", Shape::text("stdio")),
        ("command", Shape::text("/opt/claude mesh/claudemesh")),
        ("args", Shape::texts(["mcp"])),
        ("env", Shape::fields([("A_B", Shape::text("x\"y"))])),
    ])
}

fn with(format: Format, text: &str, path: &[&str]) -> String {
    let mut document = Document::read(format, text).unwrap();
    document.set(path, &entry()).unwrap();
    assert_eq!(document.at(path), Some(&entry().value()));
    document.text().to_owned()
}

fn without(format: Format, text: &str, path: &[&str]) -> String {
    let mut document = Document::read(format, text).unwrap();
    document.remove(&keys(path)).unwrap();
    document.text().to_owned()
}

#[test]
fn a_new_entry_is_laid_out_like_its_neighbours() {
    let path = ["mcpServers", "ours"];
    let text = "{\n    \"mcpServers\": {\n        \"a\": {} // mine\n    }\n}\n";
    assert_eq!(
        with(Format::Json, text, &path),
        "{\n    \"mcpServers\": {\n        \"a\": {}, // mine\n        \"ours\": {\n            \"type\": \"stdio\",\n            \
         \"command\": \"/opt/claude mesh/claudemesh\",\n            \"args\": [\"mcp\"],\n            \"env\": {\n                \
         \"A_B\": \"x\\\"y\"\n            }\n        }\n    }\n}\n"
    );
    let dense = with(Format::Json, r#"{"a":1,"mcpServers":{"b":{}}}"#, &path);
    assert!(dense.starts_with(r#"{"a":1,"mcpServers":{"b":{},"ours":{"type":"stdio","#), "{dense}");
    let empty = with(Format::Json, "", &path);
    assert!(
        empty.starts_with("{\n  \"mcpServers\": {\n    \"ours\": {\n      \"type\"")
            && empty.ends_with("}\n")
    );
}

#[test]
fn what_is_taken_out_leaves_every_byte_of_the_rest() {
    let path = ["mcpServers", "ours"];
    for text in [
        "{\"mcpServers\":{\"a\":1}}",
        "{ \"mcpServers\": { \"a\": 1 } }",
        "{\n\t\"mcpServers\": {\n\t\t\"a\": 1, // one\n\t\t/* two */ \"b\": [1,2,],\n\t},\n\t\"z\": 0\n}",
        "{\r\n  \"mcpServers\": {\r\n    \"a\": 1\r\n  }\r\n}\r\n",
        "\u{feff}{\n  \"mcpServers\": {\"ä\": \"ö,}\" /* , */ }\n}",
        "// head\n{\n  \"mcpServers\": {\n    \"a\": 1 /* x */ // y, z\n    // tail\n  }\n}\n// end",
        "{\n  \"mcpServers\": { \"a\": 1 // one\n  }\n}\n",
        "{\n  \"mcpServers\": {}\n}\n",
    ] {
        let changed = with(Format::Json, text, &path);
        assert_eq!(without(Format::Json, &changed, &path), text, "by way of {changed}");
    }
}

#[test]
fn toml_tables_come_and_go_and_leave_the_rest() {
    let path = ["mcp_servers", "our.s"];
    for text in [
        "",
        "# only a comment\n",
        "model = \"x\" # mine\n\n[mcp_servers.a]\ncommand = 'b'\nargs = [\n  1,\n]\n# end\n",
        "a = 1\r\n\r\n[mcp_servers]\r\n[mcp_servers.a.env]\r\nA = \"b\"\r\n",
        "[[x]]\na = 1\n\n[[x]]\na = 2\n\n\n",
    ] {
        let changed = with(Format::Toml, text, &path);
        assert!(changed.starts_with(text));
        assert_eq!(without(Format::Toml, &changed, &path), text, "by way of {changed}");
        // Something of the person's behind it stays.
        let more = format!("{changed}\n# next\n[next]\na = 1\n");
        assert_eq!(without(Format::Toml, &more, &path), format!("{text}\n# next\n[next]\na = 1\n"));
    }
}

#[test]
fn values_of_a_toml_table_are_exchanged_and_added() {
    let text = "[mcp_servers.a]\ncommand = \"old\" # note\ntool_timeout_sec = 9\n\n[mcp_servers.a.env]\nA = \"b\"\n[z]\n";
    let mut document = Document::read(Format::Toml, text).unwrap();
    document.set(&["mcp_servers", "a", "command"], &Shape::text("new")).unwrap();
    document.set(&["mcp_servers", "a", "args"], &Shape::texts(["mcp"])).unwrap();
    assert_eq!(
        document.text(),
        "[mcp_servers.a]\ncommand = \"new\" # note\ntool_timeout_sec = 9\nargs = [\"mcp\"]\n\n[mcp_servers.a.env]\nA = \"b\"\n[z]\n"
    );
    let raw = document.raw(&["mcp_servers", "a"]).unwrap();
    document.set(&["mcp_servers", "a"], &entry()).unwrap();
    document.put_raw(&["mcp_servers", "a"], &raw).unwrap();
    assert_eq!(document.at(&["mcp_servers", "a", "env", "A"]), Some(&json!("b")));
    assert_eq!(document.at(&["mcp_servers", "a", "command"]), Some(&json!("new")));
}

#[test]
fn an_entry_that_was_replaced_comes_back_as_it_was_written() {
    let text =
        "{\n  \"s\": {\n    \"a\": {\"command\": \"npx\", /* why */ \"n\": 1.50},\n    \"b\": 2\n  }\n}\n";
    let mut document = Document::read(Format::Json, text).unwrap();
    let raw = document.raw(&["s", "a"]).unwrap();
    document.set(&["s", "a"], &entry()).unwrap();
    document.put_raw(&["s", "a"], &raw).unwrap();
    assert_eq!(document.text(), text);
}

#[test]
fn lists_grow_and_shrink_at_their_end() {
    for text in ["{\n  \"h\": {\n    \"Stop\": [\n      {\"a\": 1}\n    ]\n  }\n}", "{\"h\":{\"Stop\":[1]}}"]
    {
        let mut document = Document::read(Format::Json, text).unwrap();
        document.push(&["h", "Stop"], &entry()).unwrap();
        assert_eq!(document.value()["h"]["Stop"][1], entry().value());
        document.remove(&[Step::Key("h".into()), Step::Key("Stop".into()), Step::Item(1)]).unwrap();
        assert_eq!(document.text(), text);
    }
}

#[test]
fn a_text_that_can_not_be_read_says_where() {
    for (format, text, line, column) in [
        (Format::Json, "{\n  \"a\": 1\n  \"b\": 2\n}", 2, 9),
        (Format::Json, "{\"a\": 'x'}", 1, 7),
        (Format::Toml, "a = 1\nb = = 2\n", 2, 5),
    ] {
        match Document::read(format, text).map(|_| ()).unwrap_err() {
            Fault::Syntax { line: l, column: c, .. } => assert_eq!((l, c), (line, column), "{text}"),
            other => panic!("{other}"),
        }
    }
    assert!(Document::read(Format::Json, "[1]").is_err());
}

#[test]
fn what_stands_in_the_way_is_refused_and_not_overwritten() {
    for (format, text, path) in [
        (Format::Json, "{\"mcpServers\": []}", ["mcpServers", "a"]),
        (Format::Json, "{\"mcpServers\": null}", ["mcpServers", "a"]),
        (Format::Toml, "mcp_servers = { b = 1 }\n", ["mcp_servers", "a"]),
        (Format::Toml, "mcp_servers = 3\n", ["mcp_servers", "a"]),
    ] {
        let mut document = Document::read(format, text).unwrap();
        assert!(document.set(&path, &entry()).is_err(), "{text}");
        assert_eq!(document.text(), text);
    }
    // The one before it would come to light.
    let mut twice = Document::read(Format::Json, r#"{"a": 1, "a": 2}"#).unwrap();
    assert_eq!(twice.remove(&keys(&["a"])), Err(Fault::Unsafe("a".into())));
}

/// A configuration as people have it: comments, any indentation, line breaks of both kinds, commas at the end or not.
fn configuration() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("1".to_owned()),
        Just("\"a // no comment, \\\" }\"".to_owned()),
        Just("[1, 2]".to_owned()),
        Just("{\"x\": [{}], \"y\": null}".to_owned()),
        Just("{\n \"deep\": true // why\n }".to_owned()),
    ];
    let comment = prop_oneof![
        3 => Just(""), 1 => Just(" // c, }"), 1 => Just(" /* c, { */"), 1 => Just(" /* a */ // b")
    ];
    let item = (value, comment);
    let items = prop::collection::vec(item, 1..5);
    let indent = prop_oneof![Just("  "), Just("\t"), Just("    ")];
    (items.clone(), items, indent, any::<[bool; 3]>()).prop_map(
        |(servers, others, indent, [crlf, trailing, has])| {
            let write = |items: &[(String, &str)], indent: &str, name: &str| {
                let mut text = String::new();
                for (at, (value, comment)) in items.iter().enumerate() {
                    let comma = if trailing || at + 1 < items.len() { "," } else { "" };
                    text.push_str(&format!("\n{indent}\"{name}{at}\": {value}{comma}{comment}"));
                }
                text
            };
            let inner = write(&servers, &indent.repeat(2), "s");
            let outer = write(&others, indent, "o");
            let text = if has {
                format!("// head\n{{\n{indent}\"mcpServers\": {{{inner}\n{indent}}},{outer}\n}}\n")
            } else {
                format!("{{{outer}\n}}\n")
            };
            if crlf { text.replace('\n', "\r\n") } else { text }
        },
    )
}

proptest! {
    #[test]
    fn in_and_out_again_is_the_same_text(text in configuration()) {
        let before = Document::read(Format::Json, &text).unwrap();
        let had = before.at(&["mcpServers"]).is_some();
        let changed = with(Format::Json, &text, &["mcpServers", "ours"]);
        let mut back = without(Format::Json, &changed, &["mcpServers", "ours"]);
        if !had {
            back = without(Format::Json, &back, &["mcpServers"]);
        }
        prop_assert_eq!(back, text, "by way of {}", changed);
    }
}
