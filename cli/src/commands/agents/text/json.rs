//! JSON with comments, changed by splicing its text.
//!
//! The layout of what is new follows its neighbours: the indentation of the item before it, one line where they share one,
//! a comma at the end where there was one. So taking the new thing out again gives back the text that was.

use std::ops::Range;

use jsonc_parser::ast::{Object, Value as Node};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::Value;

use super::{Fault, Shape, Step};

/// What editors write by themselves, no more: what these clients read.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
};
const BYTE_ORDER_MARK: char = '\u{feff}';

fn tree(text: &str) -> Result<Option<Node<'_>>, Fault> {
    let parsed = parse_to_ast(text, &CollectOptions::default(), &OPTIONS).map_err(|e| Fault::Syntax {
        line: e.line_display(),
        column: e.column_display(),
        what: e.kind().to_string(),
    })?;
    Ok(parsed.value)
}

/// An empty file says the same as an empty map.
pub fn value(text: &str) -> Result<Value, Fault> {
    let value = tree(text.trim_start_matches(BYTE_ORDER_MARK))?;
    let value = value.map_or_else(|| Value::Object(serde_json::Map::new()), |node| of_node(&node));
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Fault::Syntax { line: 1, column: 1, what: "this is not a map".to_owned() }),
    }
}

fn of_node(node: &Node<'_>) -> Value {
    match node {
        Node::StringLit(text) => Value::String(text.value.clone().into_owned()),
        // A number that does not fit is compared as it is written.
        Node::NumberLit(number) => {
            serde_json::from_str(number.value).unwrap_or_else(|_| Value::String(number.value.to_owned()))
        }
        Node::BooleanLit(boolean) => Value::Bool(boolean.value),
        Node::NullKeyword(_) => Value::Null,
        Node::Array(array) => Value::Array(array.elements.iter().map(of_node).collect()),
        Node::Object(object) => {
            let fields = object.properties.iter();
            Value::Object(fields.map(|p| (p.name.as_str().to_owned(), of_node(&p.value))).collect())
        }
    }
}

/// The text without a byte order mark goes through `act`, and gets it back.
fn behind_mark(text: &str, act: impl FnOnce(&str) -> Result<String, Fault>) -> Result<String, Fault> {
    match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => Ok(format!("{BYTE_ORDER_MARK}{}", act(rest)?)),
        None => act(text),
    }
}

pub fn set(text: &str, path: &[&str], shape: &Shape) -> Result<String, Fault> {
    behind_mark(text, |text| put(text, path, &New::Shape(shape)))
}

pub fn put_raw(text: &str, path: &[&str], raw: &str) -> Result<String, Fault> {
    behind_mark(text, |text| put(text, path, &New::Raw(raw)))
}

pub fn push(text: &str, path: &[&str], shape: &Shape) -> Result<String, Fault> {
    behind_mark(text, |text| {
        let root = tree(text)?;
        let steps = super::keys(path);
        match root.as_ref().and_then(|root| find(root, &steps)) {
            Some(list @ Node::Array(_)) => {
                Ok(insert(text, list, |layout| written(&New::Shape(shape), layout)))
            }
            _ => Err(Fault::Shape(path.join("."), "a list")),
        }
    })
}

pub fn raw(text: &str, path: &[&str]) -> Option<String> {
    let text = text.trim_start_matches(BYTE_ORDER_MARK);
    let root = tree(text).ok()??;
    Some(find(&root, &super::keys(path))?.text(text).to_owned())
}

enum New<'a> {
    Shape(&'a Shape),
    Raw(&'a str),
}

fn put(text: &str, path: &[&str], new: &New<'_>) -> Result<String, Fault> {
    let Some(root) = tree(text)? else {
        let mut begun = text.to_owned();
        if !begun.is_empty() && !begun.ends_with('\n') {
            begun.push_str(line_break(text));
        }
        begun.push_str("{}");
        begun.push_str(line_break(text));
        return put(&begun, path, new);
    };
    let steps = super::keys(path);
    if let Some(old) = find(&root, &steps) {
        let layout = Layout::at(text, old.start(), true);
        return Ok(splice(text, old.start()..old.end(), &written(new, &layout)));
    }
    // The innermost container that is there; the rest of the way is made with it.
    let depth = (0..path.len()).rev().find(|depth| find(&root, &steps[..*depth]).is_some()).unwrap_or(0);
    let parent = find(&root, &steps[..depth]).filter(|node| matches!(node, Node::Object(_)));
    let parent = parent.ok_or_else(|| Fault::Shape(path[..depth].join("."), "a map"))?;
    Ok(insert(text, parent, |layout| nested(&path[depth..], new, layout)))
}

/// `"a": { "b": new }` for the rest of a path.
fn nested(path: &[&str], new: &New<'_>, layout: &Layout) -> String {
    let Some((key, rest)) = path.split_first() else { return written(new, layout) };
    if rest.is_empty() {
        return format!("{}:{}{}", quoted(key), layout.gap, written(new, layout));
    }
    let inner = nested(rest, new, &layout.deeper());
    let (open, close) = layout.around();
    format!("{}:{}{{{open}{inner}{close}}}", quoted(key), layout.gap)
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn find<'n, 'a>(root: &'n Node<'a>, path: &[Step]) -> Option<&'n Node<'a>> {
    path.iter().try_fold(root, |node, step| match (node, step) {
        (Node::Object(object), Step::Key(key)) => Some(&object.properties[index_of(object, key)?].value),
        (Node::Array(array), Step::Item(at)) => array.elements.get(*at),
        _ => None,
    })
}

/// Of two fields of one name, the last is read.
fn index_of(object: &Object<'_>, key: &str) -> Option<usize> {
    object.properties.iter().rposition(|property| property.name.as_str() == key)
}

/// Where the items of a container stand.
fn items(container: &Node<'_>) -> Vec<Range<usize>> {
    match container {
        Node::Object(object) => object.properties.iter().map(|p| p.start()..p.end()).collect(),
        Node::Array(array) => array.elements.iter().map(|e| e.start()..e.end()).collect(),
        _ => Vec::new(),
    }
}

/// How something new is written at its place.
struct Layout {
    /// Several lines, or one.
    is_open: bool,
    line_break: &'static str,
    /// White space before the item, and one level of it.
    indent: String,
    unit: String,
    /// Behind a colon or a comma on one line.
    gap: &'static str,
}

impl Layout {
    /// For something that begins at `at`, or inside of what begins there.
    fn at(text: &str, at: usize, is_open: bool) -> Self {
        let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let indent: String = text[start..].chars().take_while(|c| matches!(c, ' ' | '\t')).collect();
        let is_dense = !text.contains('\n') && text.contains("\":") && !text.contains("\": ");
        Self {
            is_open: is_open && !is_dense,
            line_break: line_break(text),
            indent,
            unit: unit(text),
            gap: if is_dense { "" } else { " " },
        }
    }

    fn deeper(&self) -> Self {
        let indent = format!("{}{}", self.indent, self.unit);
        Self { indent, unit: self.unit.clone(), ..*self }
    }

    /// What stands between the brackets of a container and its items.
    fn around(&self) -> (String, String) {
        if !self.is_open {
            return (String::new(), String::new());
        }
        let Self { line_break, indent, unit, .. } = self;
        (format!("{line_break}{indent}{unit}"), format!("{line_break}{indent}"))
    }
}

fn line_break(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// The first indentation of the text is one level of it.
fn unit(text: &str) -> String {
    let indents = text.lines().map(|line| &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]);
    indents.into_iter().find(|indent| !indent.is_empty()).unwrap_or("  ").to_owned()
}

fn written(new: &New<'_>, layout: &Layout) -> String {
    match new {
        New::Raw(raw) => (*raw).to_owned(),
        New::Shape(shape) => write_shape(shape, layout),
    }
}

fn write_shape(shape: &Shape, layout: &Layout) -> String {
    let between = |parts: Vec<String>, layout: &Layout| {
        let (open, close) = layout.around();
        let separator = if layout.is_open { format!(",{open}") } else { format!(",{}", layout.gap) };
        if parts.is_empty() { String::new() } else { format!("{open}{}{close}", parts.join(&separator)) }
    };
    match shape {
        Shape::Leaf(value) => value.to_string(),
        Shape::List(items) => {
            // A few words are a line.
            let is_plain = items.iter().all(|item| matches!(item, Shape::Leaf(_)));
            let layout = Layout {
                is_open: layout.is_open && !is_plain,
                indent: layout.indent.clone(),
                unit: layout.unit.clone(),
                ..*layout
            };
            let parts = items.iter().map(|item| write_shape(item, &layout.deeper())).collect();
            format!("[{}]", between(parts, &layout))
        }
        Shape::Fields(fields) => {
            let field = |(name, shape): &(String, Shape)| {
                format!("{}:{}{}", quoted(name), layout.gap, write_shape(shape, &layout.deeper()))
            };
            format!("{{{}}}", between(fields.iter().map(field).collect(), layout))
        }
    }
}

fn splice(text: &str, range: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..range.start], &text[range.end..])
}

/// Behind the last item of a container.
fn insert(text: &str, container: &Node<'_>, write: impl FnOnce(&Layout) -> String) -> String {
    let items = items(container);
    let (inner_start, inner_end) = (container.start() + 1, container.end() - 1);
    let Some((first, last)) = items.first().zip(items.last()) else {
        return into_empty(text, inner_start..inner_end, write);
    };
    let comma = comma_after(text, last.end);
    let behind = end_of_comments(text, comma.map_or(last.end, |comma| comma + 1));
    let is_open = text[inner_start..first.start].contains('\n') || behind.ends_in_line_comment;
    let layout = Layout::at(text, first.start, is_open);
    let body = write(&layout);
    let before = match (is_open, comma) {
        (true, _) => format!("{}{}", layout.line_break, layout.indent),
        (false, _) => layout.gap.to_owned(),
    };
    let mut changed = text[..last.end].to_owned();
    if comma.is_none() {
        changed.push(',');
    }
    changed.push_str(&text[last.end..behind.at]);
    changed.push_str(&before);
    changed.push_str(&body);
    if comma.is_some() {
        changed.push(',');
    }
    changed.push_str(&text[behind.at..]);
    changed
}

fn into_empty(text: &str, inner: Range<usize>, write: impl FnOnce(&Layout) -> String) -> String {
    let held = text[inner.clone()].trim_end();
    let rest = &text[inner.start + held.len()..inner.end];
    // One line of other things stays one line.
    let is_alone = text.trim().len() <= inner.len() + 2;
    let is_open = is_alone || text.trim().contains('\n');
    let outer = Layout::at(text, inner.start - 1, is_open);
    let item = outer.deeper();
    let body = write(&item);
    let (open, mut close) = outer.around();
    if rest.contains('\n') {
        rest.clone_into(&mut close);
    }
    format!("{}{held}{open}{body}{close}{}", &text[..inner.start], &text[inner.end..])
}

pub fn remove(text: &str, path: &[Step]) -> Result<String, Fault> {
    behind_mark(text, |text| {
        let root = tree(text)?;
        let cut = || -> Option<String> {
            let (last, parents) = path.split_last()?;
            let container = find(root.as_ref()?, parents)?;
            let at = match (container, last) {
                (Node::Object(object), Step::Key(key)) => index_of(object, key)?,
                (Node::Array(array), Step::Item(at)) if *at < array.elements.len() => *at,
                _ => return None,
            };
            Some(cut(text, container, at))
        };
        cut().ok_or_else(|| Fault::Unsafe(super::words(path)))
    })
}

fn cut(text: &str, container: &Node<'_>, at: usize) -> String {
    let items = items(container);
    let item = items[at].clone();
    let (inner_start, inner_end) = (container.start() + 1, container.end() - 1);
    let start = text[..item.start].trim_end().len();
    let comma = comma_after(text, item.end);
    let end = comma.map_or(item.end, |comma| comma + 1);
    let before_comma = match (comma, at.checked_sub(1)) {
        (None, Some(previous)) => comma_after(text, items[previous].end),
        _ => None,
    };
    let mut changed = match before_comma {
        Some(comma) => format!("{}{}", &text[..comma], &text[comma + 1..start]),
        None => text[..start].to_owned(),
    };
    let is_last_one = items.len() == 1;
    let left = format!("{}{}", &text[inner_start..start], &text[end..inner_end]);
    changed.push_str(if is_last_one && left.trim().is_empty() { &text[inner_end..] } else { &text[end..] });
    changed
}

/// The comma that follows what ends at `at`.
fn comma_after(text: &str, at: usize) -> Option<usize> {
    let mut rest = &text[at..];
    loop {
        rest = rest.trim_start();
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.split_once('\n')?.1;
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/")?.1;
        } else {
            return rest.starts_with(',').then(|| text.len() - rest.len());
        }
    }
}

struct Behind {
    at: usize,
    ends_in_line_comment: bool,
}

/// Behind the comments that stand on the same line: they belong to what is before them.
fn end_of_comments(text: &str, at: usize) -> Behind {
    let mut found = Behind { at, ends_in_line_comment: false };
    loop {
        let rest = &text[found.at..];
        let comment = rest.trim_start_matches([' ', '\t']);
        let begin = text.len() - comment.len();
        if comment.starts_with("//") {
            let line = comment.split('\n').next().unwrap_or(comment).trim_end_matches('\r');
            return Behind { at: begin + line.len(), ends_in_line_comment: true };
        }
        match comment.strip_prefix("/*").and_then(|inner| inner.find("*/")) {
            Some(length) if !comment[..length + 4].contains('\n') => found.at = begin + length + 4,
            _ => return found,
        }
    }
}
