//! The request parser: multi-bulk and inline commands, read in place from a connection's input.
//!
//! It keeps its place between calls, so a command that arrives in a thousand pieces costs as much as one that arrives
//! whole. It allocates nothing per command (its list of argument places is reused) and believes no announced length:
//! memory follows the bytes that arrived. Limits and texts are those of Redis (`networking.c`), except that they
//! do not depend on how the bytes were split on the way.

use std::ops::Range;

use geode_crdt::amount::parse_integer;
use smallvec::SmallVec;

use crate::inline;

/// How long a line may be: an inline command, or the digits of a length (`PROTO_INLINE_MAX_SIZE` of Redis).
pub const LINE_BYTES: usize = 64 * 1024;

/// Places of arguments for which memory is kept between commands.
const KEPT_SPANS: usize = 32;

/// The limits of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLimits {
    /// How many arguments a command may have. Redis: 1 Mi.
    pub arguments: usize,
    /// How many bytes one argument may have. Redis: 512 MiB (`proto-max-bulk-len`); here 64 MiB, because a value
    /// travels to every region as one piece.
    pub argument_bytes: usize,
}

impl Default for CommandLimits {
    fn default() -> Self {
        Self { arguments: 1024 * 1024, argument_bytes: 64 * 1024 * 1024 }
    }
}

/// What is wrong with a request. The connection answers with the text and closes: there is no telling where the next
/// command would begin. The texts are Redis's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// `*` is not followed by a number, or by one beyond [`CommandLimits::arguments`].
    #[error("Protocol error: invalid multibulk length")]
    InvalidArgumentCount,
    /// `$` is not followed by a number, or by a negative one, or by one beyond [`CommandLimits::argument_bytes`].
    #[error("Protocol error: invalid bulk length")]
    InvalidArgumentLength,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", printable(*.0))]
    ExpectedArgument(u8),
    /// No end of line after `*` within [`LINE_BYTES`].
    #[error("Protocol error: too big mbulk count string")]
    ArgumentCountLine,
    /// No end of line after `$` within [`LINE_BYTES`].
    #[error("Protocol error: too big bulk count string")]
    ArgumentLengthLine,
    /// No end of line within [`LINE_BYTES`].
    #[error("Protocol error: too big inline request")]
    InlineLine,
    /// A quote in an inline command is not closed, or is followed directly by more text.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
}

/// A reply is a line of text: what would end or garble the line is shown as a space.
fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() { char::from(byte) } else { ' ' }
}

/// The place of an argument, counted from the first byte of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Inputs are limited to less than 4 GiB by the connection, which makes the narrowing exact.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) const fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    pub(crate) const fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The arguments of one command. Up to 16 of them need no allocation.
pub type Arguments<'b> = SmallVec<[&'b [u8]; 16]>;

/// Where a parser stands within one connection's input.
#[derive(Debug, Default)]
pub struct Parser {
    spans: SmallVec<[Span; 8]>,
    /// Arguments of a multi-bulk command still to come; 0 before the command's first byte was understood.
    missing: usize,
    /// The length of the argument that comes next, once its header is read.
    argument: Option<usize>,
    /// Where parsing goes on, counted from the command's first byte.
    at: usize,
    /// Up to where the end of the current line was looked for in vain.
    searched: usize,
}

impl Parser {
    /// Reads on in `input`, which begins at the first byte of the current command: at its start on the first call, and
    /// with the same bytes and more on later ones. `Ok(Some(length))`: a command fills the first `length` bytes, and
    /// [`Self::arguments`] are valid until the next call, which starts after it. `Ok(None)`: more bytes are needed.
    /// Quotes and escapes of an inline command are resolved in place.
    pub fn parse(
        &mut self,
        input: &mut [u8],
        limits: &CommandLimits,
    ) -> Result<Option<usize>, ProtocolError> {
        if self.at == 0 {
            self.spans.clear();
            match input.first() {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return self.inline(input),
            }
            match length_line(input, 0, &mut self.searched) {
                Line::Incomplete => return Ok(None),
                Line::Endless => return Err(ProtocolError::ArgumentCountLine),
                Line::NotANumber => return Err(ProtocolError::InvalidArgumentCount),
                Line::Number(count, next) if count <= 0 => return Ok(Some(self.complete(next))),
                Line::Number(count, next) => {
                    self.missing = usize::try_from(count)
                        .ok()
                        .filter(|count| *count <= limits.arguments)
                        .ok_or(ProtocolError::InvalidArgumentCount)?;
                    self.at = next;
                }
            }
        }
        while self.missing > 0 {
            let length = match self.argument {
                Some(length) => length,
                None => match self.argument_header(input, limits)? {
                    Some(length) => length,
                    None => return Ok(None),
                },
            };
            // As in Redis, the two bytes after an argument are not looked at.
            if input.len() - self.at < length + 2 {
                self.argument = Some(length);
                return Ok(None);
            }
            self.argument = None;
            self.spans.push(Span::new(self.at, self.at + length));
            self.at += length + 2;
            self.missing -= 1;
        }
        let length = self.at;
        Ok(Some(self.complete(length)))
    }

    /// The arguments of the command that [`Self::parse`] just found in `input`. Empty for an empty line or `*0`.
    pub fn arguments<'b>(&self, input: &'b [u8]) -> Arguments<'b> {
        self.spans.iter().map(|span| &input[span.range()]).collect()
    }

    /// Heap memory held between commands, in bytes.
    pub fn heap_bytes(&self) -> usize {
        if self.spans.spilled() { self.spans.capacity() * size_of::<Span>() } else { 0 }
    }

    /// Between commands, gives heap memory back that only a large command needs.
    pub fn shrink(&mut self) {
        if self.at == 0 && self.spans.capacity() > KEPT_SPANS {
            self.spans = SmallVec::new();
        }
    }

    fn complete(&mut self, length: usize) -> usize {
        self.at = 0;
        self.searched = 0;
        length
    }

    /// Reads `$<length>\r\n`.
    fn argument_header(
        &mut self,
        input: &[u8],
        limits: &CommandLimits,
    ) -> Result<Option<usize>, ProtocolError> {
        let line = length_line(input, self.at, &mut self.searched);
        if matches!(line, Line::Incomplete) {
            return Ok(None);
        }
        if matches!(line, Line::Endless) {
            return Err(ProtocolError::ArgumentLengthLine);
        }
        match input.get(self.at) {
            Some(b'$') => {}
            other => return Err(ProtocolError::ExpectedArgument(other.copied().unwrap_or(b' '))),
        }
        let Line::Number(length, next) = line else { return Err(ProtocolError::InvalidArgumentLength) };
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= limits.argument_bytes)
            .ok_or(ProtocolError::InvalidArgumentLength)?;
        self.at = next;
        Ok(Some(length))
    }

    /// Reads one line of words.
    fn inline(&mut self, input: &mut [u8]) -> Result<Option<usize>, ProtocolError> {
        let window = input.len().min(LINE_BYTES + 1);
        let Some(found) = memchr::memchr(b'\n', &input[self.searched.min(window)..window]) else {
            self.searched = window;
            return if window > LINE_BYTES { Err(ProtocolError::InlineLine) } else { Ok(None) };
        };
        let newline = self.searched + found;
        let end = if newline > 0 && input[newline - 1] == b'\r' { newline - 1 } else { newline };
        let spans = &mut self.spans;
        inline::split(input, end, |span| spans.push(span)).map_err(|_| ProtocolError::UnbalancedQuotes)?;
        Ok(Some(self.complete(newline + 1)))
    }
}

/// A line that holds a number.
enum Line {
    /// Its end has not arrived.
    Incomplete,
    /// Its end is not within [`LINE_BYTES`].
    Endless,
    /// It holds something else.
    NotANumber,
    /// The number and the place after the line.
    Number(i64, usize),
}

/// Reads `<type><number>\r\n` at `header`; the type is the caller's affair. As in Redis, the byte after `\r` is not looked
/// at, but has to be there.
fn length_line(input: &[u8], header: usize, searched: &mut usize) -> Line {
    // Nearly every line: a few digits without a leading zero, all there.
    let digits = header + 1;
    let mut value: i64 = 0;
    let mut at = digits;
    while let Some(digit) = input.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
        if at - digits == 9 {
            break;
        }
        value = value * 10 + i64::from(digit);
        at += 1;
    }
    let plain = at > digits && (input[digits] != b'0' || at == digits + 1);
    if plain && input.get(at) == Some(&b'\r') && at + 1 < input.len() {
        *searched = 0;
        return Line::Number(value, at + 2);
    }
    any_line(input, header, searched)
}

/// [`length_line`] for everything unusual.
#[cold]
fn any_line(input: &[u8], header: usize, searched: &mut usize) -> Line {
    let window = input.len().min(header + LINE_BYTES + 1);
    let from = (*searched).max(header).min(window);
    let Some(found) = memchr::memchr(b'\r', &input[from..window]) else {
        *searched = window;
        return if window - header > LINE_BYTES { Line::Endless } else { Line::Incomplete };
    };
    let end = from + found;
    if end + 1 >= input.len() {
        *searched = end;
        return Line::Incomplete;
    }
    *searched = 0;
    match input.get(header + 1..end).and_then(parse_integer) {
        Some(value) => Line::Number(value, end + 2),
        None => Line::NotANumber,
    }
}
