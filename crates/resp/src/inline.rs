//! Inline commands: one line of words, as a person types them into telnet.
//!
//! Follows `sdssplitargs` of Redis: words are separated by white space, double quotes know `\n \r \t \a \b \xHH` and
//! any other escaped byte, single quotes know only `\'`, and a closing quote ends its word.

use crate::parse::Span;

/// A quote that is not closed, or is followed directly by more text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnbalancedQuotes;

/// Splits the line `buffer[..end]` into words and calls `found` with the place of each. Quotes and escapes are resolved
/// in place: a word is never longer than its source.
pub(crate) fn split(
    buffer: &mut [u8],
    end: usize,
    mut found: impl FnMut(Span),
) -> Result<(), UnbalancedQuotes> {
    // To Redis a line is a C string: it ends at the first NUL.
    let end = memchr::memchr(0, &buffer[..end]).unwrap_or(end);
    let line = &mut buffer[..end];
    let mut at = 0;
    loop {
        while line.get(at).is_some_and(|byte| is_space(*byte)) {
            at += 1;
        }
        if at == end {
            return Ok(());
        }
        let start = at;
        let mut to = at;
        at = word(line, at, &mut to)?;
        found(Span::new(start, to));
    }
}

/// Reads one word at `at`, writes its bytes at `to` and returns where it ended.
fn word(line: &mut [u8], mut at: usize, to: &mut usize) -> Result<usize, UnbalancedQuotes> {
    while let Some(&byte) = line.get(at) {
        at += 1;
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => return Ok(at),
            b'"' | b'\'' => {
                at = quoted(line, at, byte, to)?;
                return match line.get(at) {
                    Some(next) if !is_space(*next) => Err(UnbalancedQuotes),
                    _ => Ok(at),
                };
            }
            byte => put(line, to, byte),
        }
    }
    Ok(at)
}

/// Reads up to the closing `quote` and returns the place after it.
fn quoted(line: &mut [u8], mut at: usize, quote: u8, to: &mut usize) -> Result<usize, UnbalancedQuotes> {
    while let Some(&byte) = line.get(at) {
        at += 1;
        let next = line.get(at).copied();
        match (byte, next) {
            (byte, _) if byte == quote => return Ok(at),
            (b'\\', Some(b'\'')) if quote == b'\'' => {
                put(line, to, b'\'');
                at += 1;
            }
            (b'\\', Some(escaped)) if quote == b'"' => {
                if let Some(value) = hexadecimal(&line[at..]) {
                    put(line, to, value);
                    at += 3;
                } else {
                    put(line, to, unescape(escaped));
                    at += 1;
                }
            }
            _ => put(line, to, byte),
        }
    }
    Err(UnbalancedQuotes)
}

/// The value of an escape `xHH` (the backslash already read).
fn hexadecimal(text: &[u8]) -> Option<u8> {
    let [b'x', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

const fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn put(line: &mut [u8], to: &mut usize, byte: u8) {
    line[*to] = byte;
    *to += 1;
}

/// `isspace` of C.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 0x09..=0x0d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, UnbalancedQuotes> {
        let mut buffer = line.to_vec();
        let mut spans = Vec::new();
        split(&mut buffer, line.len(), |span| spans.push(span))?;
        Ok(spans.into_iter().map(|span| buffer[span.range()].to_vec()).collect())
    }

    #[test]
    fn splits_as_redis_does() {
        let cases: &[(&[u8], &[&[u8]])] = &[
            (b"", &[]),
            (b" \t ", &[]),
            (b"SET  a\tb ", &[b"SET", b"a", b"b"]),
            (br#"SET a "hello world""#, &[b"SET", b"a", b"hello world"]),
            (br#""" ''"#, &[b"", b""]),
            (br#""\x41\n\"\q\xg""#, &[b"A\n\"qxg"]),
            (br#"'it\'s \n'"#, &[br"it's \n"]),
            (br#"foo"bar" x"#, &[b"foobar", b"x"]),
            (b"a\0b c", &[b"a"]),
            (b"a\x0bb \x0bc", &[b"a\x0bb", b"c"]),
        ];
        for (line, expected) in cases {
            assert_eq!(words(line).unwrap(), *expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn refuses_unbalanced_quotes() {
        for line in [&b"\"abc"[..], b"'abc", b"\"a\"b", b"'a'b", b"\"a\\", b"\"a\\\"", b"\"a\0\""] {
            assert_eq!(words(line), Err(UnbalancedQuotes), "{}", line.escape_ascii());
        }
    }
}
