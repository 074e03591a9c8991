//! A walk over the tables of a TOML document that notes every mistake and goes on.

use std::cell::RefCell;

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::ConfigError;
use super::value::{Found, Wrong, describe, quote};
use crate::spelling::nearest;

/// The mistakes found so far.
pub(super) struct Findings<'t> {
    file: &'t str,
    line_starts: Vec<usize>,
    errors: RefCell<Vec<ConfigError>>,
}

impl<'t> Findings<'t> {
    pub(super) fn new(file: &'t str, text: &str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, line_starts, errors: RefCell::default() }
    }

    /// The line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(super) fn report(&self, offset: usize, key: &str, wrong: Wrong) {
        let Wrong { problem, expected } = wrong;
        let line = self.line(offset);
        self.errors.borrow_mut().push(ConfigError {
            file: self.file.into(),
            line,
            key: key.into(),
            problem,
            expected,
        });
    }

    /// All mistakes, in the order of their lines.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        errors
    }
}

/// One table, or the absence of one, which reads like an empty table.
pub(super) struct Section<'t> {
    findings: &'t Findings<'t>,
    path: String,
    /// Where it stands: its key, or the start of the file.
    offset: usize,
    table: Option<&'t DeTable<'t>>,
    /// The keys that were asked for, so that all others are unknown.
    asked: Vec<&'static str>,
}

/// One key of a table, and what stands there.
#[derive(Clone, Copy)]
pub(super) struct Entry<'t> {
    pub(super) name: &'t str,
    key_offset: usize,
    value: &'t Spanned<DeValue<'t>>,
}

impl<'t> Section<'t> {
    pub(super) fn root(table: &'t DeTable<'t>, findings: &'t Findings<'t>) -> Self {
        Self { findings, path: String::new(), offset: 0, table: Some(table), asked: Vec::new() }
    }

    /// The value of a key, understood by `read`; none if it is absent or wrong, and the latter is noted.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Found<T>,
    ) -> Option<T> {
        let entry = self.ask(key)?;
        self.read(entry, read)
    }

    /// As [`take`](Self::take); its absence is a mistake too.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Found<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.report(key, Wrong::missing(&format!("write {key} = {example}")));
        }
        self.take(key, read)
    }

    /// A list, each element understood by `read`.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl Fn(&DeValue<'_>) -> Found<T>,
    ) -> Option<Vec<T>> {
        let entry = self.ask(key)?;
        match entry.value.get_ref() {
            DeValue::Array(elements) => self.elements(key, elements, read),
            other => {
                let problem = format!("{} is not a list", describe(other));
                self.report(key, Wrong { problem, expected: format!("write it like {example}") });
                None
            }
        }
    }

    /// A list, or a single value as a list of one.
    pub(super) fn one_or_more<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Found<T>,
    ) -> Option<Vec<T>> {
        let entry = self.ask(key)?;
        match entry.value.get_ref() {
            DeValue::Array(elements) => self.elements(key, elements, read),
            _ => self.read(entry, read).map(|element| vec![element]),
        }
    }

    fn elements<T>(
        &self,
        key: &str,
        elements: &DeArray<'_>,
        read: impl Fn(&DeValue<'_>) -> Found<T>,
    ) -> Option<Vec<T>> {
        let read_element = |(index, element): (usize, &Spanned<DeValue<'_>>)| {
            self.checked(element.span().start, &format!("{key}[{index}]"), read(element.get_ref()))
        };
        // Every element is read, so that every mistake is noted, before the first one drops the list.
        let elements: Vec<Option<T>> = elements.iter().enumerate().map(read_element).collect();
        elements.into_iter().collect()
    }

    /// The table below a key.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        match self.ask(key) {
            Some(entry) => self.below(entry),
            None => Self {
                findings: self.findings,
                path: self.key(key),
                offset: self.offset,
                table: None,
                asked: Vec::new(),
            },
        }
    }

    /// Everything in this table, where the keys are the user's own.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'t>> + use<'t> {
        self.table.into_iter().flatten().map(entry)
    }

    /// The value of an entry of this table, understood by `read`.
    pub(super) fn read<T>(&self, entry: Entry<'t>, read: impl FnOnce(&DeValue<'_>) -> Found<T>) -> Option<T> {
        self.checked(entry.value.span().start, entry.name, read(entry.value.get_ref()))
    }

    /// The name of an entry of this table, understood by `read`.
    pub(super) fn read_name<T>(&self, entry: Entry<'t>, read: impl FnOnce(&str) -> Found<T>) -> Option<T> {
        self.checked(entry.key_offset, entry.name, read(entry.name))
    }

    /// The table in an entry of this table; an empty one, and a mistake noted, if it is something else.
    pub(super) fn below(&self, entry: Entry<'t>) -> Self {
        let table = entry.value.get_ref().as_table();
        if table.is_none() {
            let problem = format!("{} is not a table", describe(entry.value.get_ref()));
            let path = self.key(entry.name);
            let expected = format!("write [{path}] on a line of its own, its keys below");
            self.report(entry.name, Wrong { problem, expected });
        }
        let (findings, path, offset) = (self.findings, self.key(entry.name), entry.key_offset);
        Self { findings, path, offset, table, asked: Vec::new() }
    }

    /// A key of a part that does not exist yet.
    pub(super) fn not_built(&mut self, key: &'static str, part: &str) {
        if self.ask(key).is_some() {
            self.report(key, Wrong::not_built(part, "remove it for now"));
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Notes a mistake in a key of this table, where the key stands or else where the table does.
    pub(super) fn report(&self, key: &str, wrong: Wrong) {
        let offset = self.find(key).map_or(self.offset, |entry| entry.key_offset);
        self.findings.report(offset, &self.key(key), wrong);
    }

    /// Notes a mistake in this table as a whole.
    pub(super) fn report_table(&self, wrong: Wrong) {
        self.findings.report(self.offset, &self.path, wrong);
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(mut self) {
        self.asked.sort_unstable();
        for entry in self.entries().filter(|entry| !self.asked.contains(&entry.name)) {
            let expected = match nearest(entry.name, self.asked.iter().copied()) {
                Some(nearest) => format!("did you mean {nearest:?}?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            self.report(entry.name, Wrong { problem: "unknown key".into(), expected });
        }
    }

    fn ask(&mut self, key: &'static str) -> Option<Entry<'t>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.find(key)
    }

    fn find(&self, key: &str) -> Option<Entry<'t>> {
        self.table?.get_key_value(key).map(entry)
    }

    fn checked<T>(&self, offset: usize, key: &str, found: Found<T>) -> Option<T> {
        found.map_err(|wrong| self.findings.report(offset, &self.key(key), wrong)).ok()
    }

    /// The full key, quoted where TOML would quote it.
    fn key(&self, key: &str) -> String {
        // An element's index ("public[1]") is ours, not the user's.
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '[' | ']');
        let key = if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { quote(key) };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

fn entry<'t>((key, value): (&'t Spanned<DeString<'t>>, &'t Spanned<DeValue<'t>>)) -> Entry<'t> {
    Entry { name: key.get_ref(), key_offset: key.span().start, value }
}
