//! The text of a configuration file, changed in one place and nowhere else.
//!
//! Here: what it says ([`Document::value`]), and setting, appending and removing one thing of it. Not here: files, clients.
//! Invariant: after a change every other byte is where it was, and what the text says is exactly what was meant: that is
//! checked by reading it again.

mod json;
mod toml;

use serde_json::{Map, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON, with or without comments.
    Json,
    Toml,
}

impl Format {
    /// In TOML the table around tables has no text of its own: without them it is not there.
    fn is_same(self, one: &Value, other: &Value) -> bool {
        match self {
            Self::Json => one == other,
            Self::Toml => without_empty(one) == without_empty(other),
        }
    }
}

fn without_empty(value: &Value) -> Value {
    let Value::Object(fields) = value else { return value.clone() };
    let fields = fields.iter().map(|(key, value)| (key.clone(), without_empty(value)));
    Value::Object(fields.filter(|(_, value)| value.as_object().is_none_or(|map| !map.is_empty())).collect())
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    #[error("line {line}, column {column}: {what}")]
    Syntax { line: usize, column: usize, what: String },
    #[error("`{0}` is not what it should be there: {1}")]
    Shape(String, &'static str),
    #[error("`{0}` can not be changed without touching something else; change it by hand")]
    Unsafe(String),
}

/// What is written, in the order in which it is to stand.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Leaf(Value),
    List(Vec<Shape>),
    Fields(Vec<(String, Shape)>),
}

impl Shape {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Leaf(Value::String(text.into()))
    }

    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::List(texts.into_iter().map(Self::text).collect())
    }

    pub fn fields<const N: usize>(fields: [(&str, Self); N]) -> Self {
        Self::Fields(fields.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect())
    }

    pub fn of(value: &Value) -> Self {
        match value {
            Value::Array(items) => Self::List(items.iter().map(Self::of).collect()),
            Value::Object(fields) => {
                Self::Fields(fields.iter().map(|(name, value)| (name.clone(), Self::of(value))).collect())
            }
            leaf => Self::Leaf(leaf.clone()),
        }
    }

    pub fn value(&self) -> Value {
        match self {
            Self::Leaf(value) => value.clone(),
            Self::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Self::Fields(fields) => {
                Value::Object(fields.iter().map(|(name, shape)| (name.clone(), shape.value())).collect())
            }
        }
    }
}

/// One step from a container to what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Item(usize),
}

pub fn keys(path: &[&str]) -> Vec<Step> {
    path.iter().map(|key| Step::Key((*key).to_owned())).collect()
}

fn words(path: &[Step]) -> String {
    let step = |step: &Step| match step {
        Step::Key(key) => key.clone(),
        Step::Item(at) => at.to_string(),
    };
    path.iter().map(step).collect::<Vec<_>>().join(".")
}

pub struct Document {
    format: Format,
    text: String,
    value: Value,
}

impl Document {
    pub fn read(format: Format, text: &str) -> Result<Self, Fault> {
        let value = parse(format, text)?;
        Ok(Self { format, text: text.to_owned(), value })
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.value, |value, key| value.get(key))
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Puts `shape` at `path`, in place of what is there.
    pub fn set(&mut self, path: &[&str], shape: &Shape) -> Result<(), Fault> {
        let meant = shape.value();
        if self.at(path) == Some(&meant) {
            return Ok(());
        }
        let changed = match self.format {
            Format::Json => json::set(&self.text, path, shape)?,
            Format::Toml => toml::set(&self.text, path, shape)?,
        };
        let mut expected = self.value.clone();
        put(&mut expected, path, meant).ok_or_else(|| not_a_map(path))?;
        self.accept(changed, &expected, &keys(path))
    }

    /// Puts `shape` behind the last item of the list at `path`.
    pub fn push(&mut self, path: &[&str], shape: &Shape) -> Result<(), Fault> {
        if self.at(path).is_none() {
            return self.set(path, &Shape::List(vec![shape.clone()]));
        }
        let mut expected = self.value.clone();
        let list = path.iter().try_fold(&mut expected, |value, key| value.get_mut(key));
        let list = list.and_then(Value::as_array_mut);
        list.ok_or_else(|| Fault::Shape(path.join("."), "a list"))?.push(shape.value());
        let changed = match self.format {
            Format::Json => json::push(&self.text, path, shape)?,
            Format::Toml => return Err(Fault::Unsafe(path.join("."))),
        };
        self.accept(changed, &expected, &keys(path))
    }

    /// Nothing happens where nothing is.
    pub fn remove(&mut self, path: &[Step]) -> Result<(), Fault> {
        let mut expected = self.value.clone();
        if !take(&mut expected, path) {
            return Ok(());
        }
        let changed = match self.format {
            Format::Json => json::remove(&self.text, path)?,
            Format::Toml => toml::remove(&self.text, path)?,
        };
        self.accept(changed, &expected, path)
    }

    /// The text of what is at `path`, as [`Self::put_raw`] takes it.
    pub fn raw(&self, path: &[&str]) -> Option<String> {
        match self.format {
            Format::Json => json::raw(&self.text, path),
            Format::Toml => toml::raw(&self.text, path),
        }
    }

    /// Puts back what [`Self::raw`] gave, in place of what is there now.
    pub fn put_raw(&mut self, path: &[&str], raw: &str) -> Result<(), Fault> {
        let changed = match self.format {
            Format::Json => json::put_raw(&self.text, path, raw)?,
            Format::Toml => toml::put_raw(&self.text, path, raw)?,
        };
        // What it says is the past's; that it says it only there is ours to check.
        let mut expected = self.value.clone();
        let read = parse(self.format, &changed)?;
        let restored = path.iter().try_fold(&read, |value, key| value.get(key));
        let restored = restored.cloned().ok_or_else(|| Fault::Unsafe(path.join(".")))?;
        put(&mut expected, path, restored).ok_or_else(|| not_a_map(path))?;
        self.accept(changed, &expected, &keys(path))
    }

    fn accept(&mut self, changed: String, expected: &Value, path: &[Step]) -> Result<(), Fault> {
        match parse(self.format, &changed) {
            Ok(read) if self.format.is_same(&read, expected) => {
                (self.text, self.value) = (changed, read);
                Ok(())
            }
            _ => Err(Fault::Unsafe(words(path))),
        }
    }
}

fn parse(format: Format, text: &str) -> Result<Value, Fault> {
    match format {
        Format::Json => json::value(text),
        Format::Toml => toml::value(text),
    }
}

fn not_a_map(path: &[&str]) -> Fault {
    Fault::Shape(path.join("."), "inside of a map")
}

fn put(value: &mut Value, path: &[&str], new: Value) -> Option<()> {
    let (last, parents) = path.split_last()?;
    let mut here = value;
    for key in parents {
        let map = here.as_object_mut()?;
        here = map.entry(*key).or_insert_with(|| Value::Object(Map::new()));
    }
    here.as_object_mut()?.insert((*last).to_owned(), new);
    Some(())
}

fn take(value: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Item(at) => value.get_mut(*at),
    });
    match (parent, last) {
        (Some(Value::Object(map)), Step::Key(key)) => map.remove(key).is_some(),
        (Some(Value::Array(items)), Step::Item(at)) if *at < items.len() => {
            items.remove(*at);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
