//! TOML, changed by splicing its text: a table of its own is appended, a value is exchanged, lines are taken out.

use std::ops::Range;

use serde_json::{Map, Value};
use toml_edit::{Document, Item, TableLike};

use super::{Fault, Shape, Step};

fn tree(text: &str) -> Result<Document<&str>, Fault> {
    Document::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start).min(text.len());
        let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Fault::Syntax { line, column, what: e.message().to_owned() }
    })
}

pub fn value(text: &str) -> Result<Value, Fault> {
    let document = tree(text)?;
    Ok(of_table(document.as_table()))
}

fn of_table(table: &dyn TableLike) -> Value {
    Value::Object(table.iter().map(|(key, item)| (key.to_owned(), of_item(item))).collect::<Map<_, _>>())
}

fn of_item(item: &Item) -> Value {
    match item {
        Item::None => Value::Null,
        Item::Table(table) => of_table(table),
        Item::ArrayOfTables(tables) => Value::Array(tables.iter().map(|table| of_table(table)).collect()),
        Item::Value(value) => of_value(value),
    }
}

fn of_value(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::String(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(boolean) => Value::Bool(*boolean.value()),
        toml_edit::Value::Datetime(time) => Value::String(time.value().to_string()),
        toml_edit::Value::Array(items) => Value::Array(items.iter().map(of_value).collect()),
        toml_edit::Value::InlineTable(table) => of_table(table),
    }
}

fn find<'d>(document: &'d Document<&str>, path: &[&str]) -> Option<&'d Item> {
    path.iter().try_fold(document.as_item(), |item, key| item.get(key))
}

pub fn set(text: &str, path: &[&str], shape: &Shape) -> Result<String, Fault> {
    let document = tree(text)?;
    let unsafe_here = || Fault::Unsafe(path.join("."));
    match find(&document, path) {
        Some(Item::Value(value)) => {
            let span = value.span().ok_or_else(unsafe_here)?;
            Ok(format!("{}{}{}", &text[..span.start], inline(shape), &text[span.end..]))
        }
        Some(_) => {
            let steps = super::keys(path);
            set(&remove(text, &steps)?, path, shape)
        }
        None => match shape {
            Shape::Fields(fields) => Ok(append(text, &table(path, fields, line_break(text)))),
            _ => add_line(text, &document, path, shape).ok_or_else(unsafe_here),
        },
    }
}

/// One more line in a table that is there.
fn add_line(text: &str, document: &Document<&str>, path: &[&str], shape: &Shape) -> Option<String> {
    let (key, parents) = path.split_last()?;
    let table = find(document, parents)?.as_table()?;
    let at = own_lines(text, table)?.end;
    let open = if text[..at].ends_with('\n') { "" } else { line_break(text) };
    let line = format!("{open}{} = {}{}", key_text(key), inline(shape), line_break(text));
    Some(format!("{}{line}{}", &text[..at], &text[at..]))
}

fn append(text: &str, block: &str) -> String {
    let end = line_break(text);
    let gap = match text {
        "" => String::new(),
        text if text.ends_with('\n') => end.to_owned(),
        _ => end.repeat(2),
    };
    format!("{text}{gap}{block}")
}

fn table(path: &[&str], fields: &[(String, Shape)], end: &str) -> String {
    let name = path.iter().map(|key| key_text(key)).collect::<Vec<_>>().join(".");
    let mut block = format!("[{name}]{end}");
    for (key, shape) in fields {
        block.push_str(&format!("{} = {}{end}", key_text(key), inline(shape)));
    }
    block
}

fn line_break(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

fn key_text(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if is_bare { key.to_owned() } else { inline(&Shape::text(key)) }
}

fn inline(shape: &Shape) -> String {
    match shape {
        Shape::Leaf(Value::String(text)) => toml_edit::Value::from(text.as_str()).to_string(),
        Shape::Leaf(value) => value.to_string(),
        Shape::List(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Shape::Fields(fields) => {
            let field = |(key, shape): &(String, Shape)| format!("{} = {}", key_text(key), inline(shape));
            format!("{{ {} }}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

/// From the head of a table to the last line of its own values, whole lines.
fn own_lines(text: &str, table: &toml_edit::Table) -> Option<Range<usize>> {
    let head = table.span().filter(|_| !table.is_implicit() && !table.is_dotted())?;
    let head_end = head.start + text[head.start..].find('\n').unwrap_or(text.len() - head.start);
    let ends = table.iter().filter_map(|(_, item)| last_end(item)).chain([head_end]);
    Some(lines(text, head.start..ends.max()?))
}

/// Where the text of a value ends; tables of their own have their own lines.
fn last_end(item: &Item) -> Option<usize> {
    match item {
        Item::Value(value) => Some(value.span()?.end),
        Item::Table(table) if table.is_dotted() => table.iter().filter_map(|(_, item)| last_end(item)).max(),
        _ => None,
    }
}

fn lines(text: &str, range: Range<usize>) -> Range<usize> {
    let start = text[..range.start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[range.end..].find('\n').map_or(text.len(), |at| range.end + at + 1);
    start..end
}

/// The lines of a table and of the tables below it.
fn all_lines(text: &str, item: &Item, found: &mut Vec<Range<usize>>) -> Option<()> {
    let Item::Table(table) = item else { return None };
    if table.is_dotted() {
        return None;
    }
    if !table.is_implicit() {
        found.push(own_lines(text, table)?);
    }
    for (_, inner) in table.iter().filter(|(_, inner)| !inner.is_value()) {
        all_lines(text, inner, found)?;
    }
    Some(())
}

fn ranges(text: &str, document: &Document<&str>, path: &[&str]) -> Option<Vec<Range<usize>>> {
    let item = find(document, path)?;
    let mut found = Vec::new();
    if let Item::Value(value) = item {
        let (key, parents) = path.split_last()?;
        // Inside of an inline table it shares its line with others.
        let key = find(document, parents)?.as_table()?.key(key)?.span()?;
        found.push(lines(text, key.start..value.span()?.end));
    } else {
        all_lines(text, item, &mut found)?;
    }
    found.sort_by_key(|range| range.start);
    Some(found).filter(|found| !found.is_empty())
}

pub fn remove(text: &str, path: &[Step]) -> Result<String, Fault> {
    let unsafe_here = || Fault::Unsafe(super::words(path));
    let document = tree(text)?;
    let path: Option<Vec<&str>> = path
        .iter()
        .map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Item(_) => None,
        })
        .collect();
    let found = path.and_then(|path| ranges(text, &document, &path)).ok_or_else(unsafe_here)?;
    let mut changed = text.to_owned();
    for range in found.into_iter().rev() {
        changed.replace_range(with_blank_before(text, range), "");
    }
    Ok(changed)
}

/// The empty line that set a table off goes with it.
fn with_blank_before(text: &str, range: Range<usize>) -> Range<usize> {
    let before = &text[..range.start];
    let blank = ["\r\n", "\n"]
        .into_iter()
        .find(|end| before.strip_suffix(end).is_some_and(|rest| rest.ends_with('\n')));
    let is_table = text[range.clone()].trim_start().starts_with('[');
    range.start - blank.filter(|_| is_table).map_or(0, str::len)..range.end
}

pub fn raw(text: &str, path: &[&str]) -> Option<String> {
    let document = tree(text).ok()?;
    let found = ranges(text, &document, path)?;
    // A line inside of another table would not mean the same at the end of the file.
    let parts: Vec<&str> = found.into_iter().map(|range| &text[range]).collect();
    parts.iter().all(|part| part.trim_start().starts_with('[')).then(|| parts.concat())
}

pub fn put_raw(text: &str, path: &[&str], raw: &str) -> Result<String, Fault> {
    let document = tree(text)?;
    let cleared = match find(&document, path) {
        Some(_) => remove(text, &super::keys(path))?,
        None => text.to_owned(),
    };
    Ok(append(&cleared, raw))
}
