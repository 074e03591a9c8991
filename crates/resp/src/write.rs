//! Replies as bytes, in version 2 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>) or 3 of the protocol.

use geode_store::Reply;

/// The version of the protocol that a connection chose with HELLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2, spoken until HELLO says otherwise.
    #[default]
    Version2,
    /// RESP3, which has its own shapes for maps, sets, doubles and null.
    Version3,
}

impl Protocol {
    /// As HELLO names it.
    pub const fn number(self) -> i64 {
        match self {
            Self::Version2 => 2,
            Self::Version3 => 3,
        }
    }
}

/// Appends an error reply; the text is one line.
pub(crate) fn put_error(output: &mut Vec<u8>, text: &str) {
    output.push(b'-');
    output.extend_from_slice(text.as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// How many replies stand in `bytes`, which are whole and were written by a [`Writer`].
pub(crate) fn count_replies(mut bytes: &[u8]) -> usize {
    let (mut replies, mut open) = (0, 0_usize);
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
        let number = line.get(1..).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        // Null has the length -1, which is no usize.
        let length: Option<usize> = number;
        let (elements, body) = match line.first() {
            Some(b'$' | b'=') => (0, length.map_or(0, |length| length + 2)),
            Some(b'*' | b'~') => (length.unwrap_or(0), 0),
            Some(b'%') => (2 * length.unwrap_or(0), 0),
            _ => (0, 0),
        };
        bytes = rest.get(body..).unwrap_or_default();
        match open.checked_sub(1) {
            Some(left) => open = left + elements,
            None => (replies, open) = (replies + 1, elements),
        }
    }
    replies
}

/// Appends replies to a connection's output.
#[derive(Debug)]
pub struct Writer<'o> {
    output: &'o mut Vec<u8>,
    protocol: Protocol,
    limit: usize,
    overflowed: bool,
    errors: u64,
}

impl<'o> Writer<'o> {
    /// A writer in one version of the protocol. `output` does not grow beyond `limit` bytes by bulk strings: what comes
    /// after is dropped and [`Self::overflowed`] tells so; the connection has to be closed.
    pub const fn new(output: &'o mut Vec<u8>, protocol: Protocol, limit: usize) -> Self {
        Self { output, protocol, limit, overflowed: false, errors: 0 }
    }

    /// Changes the version for what follows.
    pub const fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Whether a reply was cut at the limit.
    pub const fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// How many error replies were written.
    pub const fn errors(&self) -> u64 {
        self.errors
    }

    fn is_version3(&self) -> bool {
        self.protocol == Protocol::Version3
    }

    /// `<kind><number>\r\n`
    fn number(&mut self, kind: u8, number: impl itoa::Integer) {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(number).as_bytes();
        let mut line = [0; 48];
        line[0] = kind;
        line[1..=digits.len()].copy_from_slice(digits);
        line[digits.len() + 1] = b'\r';
        line[digits.len() + 2] = b'\n';
        self.output.extend_from_slice(&line[..digits.len() + 3]);
    }

    /// `<kind><text>\r\n`, with line ends in the text shown as spaces, as Redis does.
    fn line(&mut self, kind: u8, text: &str) {
        self.output.push(kind);
        let start = self.output.len();
        self.output.extend_from_slice(text.as_bytes());
        for byte in &mut self.output[start..] {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        self.output.extend_from_slice(b"\r\n");
    }
}

impl Reply for Writer<'_> {
    fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    fn error(&mut self, message: &str) {
        self.errors += 1;
        self.line(b'-', message);
    }

    fn integer(&mut self, value: i64) {
        self.number(b':', value);
    }

    fn bulk(&mut self, bytes: &[u8]) {
        if self.overflowed || self.output.len().saturating_add(bytes.len()) > self.limit {
            self.overflowed = true;
            return;
        }
        self.output.reserve(bytes.len() + 32);
        self.number(b'$', bytes.len());
        self.output.extend_from_slice(bytes);
        self.output.extend_from_slice(b"\r\n");
    }

    fn null(&mut self) {
        self.output.extend_from_slice(if self.is_version3() { b"_\r\n" } else { b"$-1\r\n" });
    }

    fn null_array(&mut self) {
        self.output.extend_from_slice(if self.is_version3() { b"_\r\n" } else { b"*-1\r\n" });
    }

    fn array(&mut self, length: usize) {
        self.number(b'*', length);
    }

    fn map(&mut self, length: usize) {
        if self.is_version3() {
            self.number(b'%', length);
        } else {
            self.number(b'*', length * 2);
        }
    }

    fn set(&mut self, length: usize) {
        self.number(if self.is_version3() { b'~' } else { b'*' }, length);
    }

    fn double(&mut self, value: f64) {
        let text = double_text(value);
        if self.is_version3() {
            self.line(b',', &text);
        } else {
            self.bulk(text.as_bytes());
        }
    }

    fn mark(&self) -> usize {
        self.output.len()
    }

    fn rewind(&mut self, mark: usize) {
        self.output.truncate(mark);
    }
}

/// The shortest decimal that reads back as the same double, in the form of Redis 7.2: plain digits where that is short,
/// else an exponent with its sign.
fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let exponent: i32 =
        scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    match exponent {
        -5..=20 => format!("{value}"),
        ..-5 => scientific,
        _ => scientific.replace('e', "e+"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(protocol: Protocol, write: impl FnOnce(&mut Writer<'_>)) -> String {
        let mut output = Vec::new();
        write(&mut Writer::new(&mut output, protocol, 1000));
        output.escape_ascii().to_string()
    }

    fn every_shape(reply: &mut Writer<'_>) {
        reply.simple("OK");
        reply.error("ERR no\r\nsuch thing");
        reply.integer(i64::MIN);
        reply.bulk(b"a\r\nb");
        reply.bulk(b"");
        reply.null();
        reply.null_array();
        reply.array(2);
        reply.map(3);
        reply.set(1);
        reply.double(0.1);
    }

    #[test]
    fn shapes_of_version_2() {
        assert_eq!(
            written(Protocol::Version2, every_shape),
            r"+OK\r\n-ERR no  such thing\r\n:-9223372036854775808\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$-1\r\n*-1\r\n*2\r\n*6\r\n*1\r\n$3\r\n0.1\r\n"
        );
    }

    #[test]
    fn shapes_of_version_3() {
        assert_eq!(
            written(Protocol::Version3, every_shape),
            r"+OK\r\n-ERR no  such thing\r\n:-9223372036854775808\r\n$4\r\na\r\nb\r\n$0\r\n\r\n_\r\n_\r\n*2\r\n%3\r\n~1\r\n,0.1\r\n"
        );
    }

    #[test]
    fn doubles_read_back_as_the_same_number() {
        let texts = [
            (0.0, "0"),
            (-0.5, "-0.5"),
            (3.0, "3"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e20, "100000000000000000000"),
            (1.5e300, "1.5e+300"),
            (1e-7, "1e-7"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (value, text) in texts {
            assert_eq!(double_text(value), text);
            assert!(value.is_nan() || text.parse() == Ok(value));
        }
    }

    #[test]
    fn a_reply_can_be_taken_back() {
        let text = written(Protocol::Version2, |reply| {
            reply.integer(1);
            let mark = reply.mark();
            reply.array(5);
            reply.bulk(b"x");
            reply.rewind(mark);
            reply.integer(2);
        });
        assert_eq!(text, r":1\r\n:2\r\n");
    }

    #[test]
    fn output_stops_at_the_limit() {
        let mut output = Vec::new();
        let mut reply = Writer::new(&mut output, Protocol::Version2, 100);
        reply.bulk(&[b'x'; 60]);
        assert!(!reply.overflowed());
        reply.bulk(&[b'x'; 60]);
        reply.bulk(b"x");
        assert!(reply.overflowed());
        assert_eq!(output.len(), "$60\r\n".len() + 60 + 2);
    }
}
