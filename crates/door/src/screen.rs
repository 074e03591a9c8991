//! Finds request-smuggling shapes before the HTTP parser sees them.
//!
//! The parser behind this (hyper) is lenient where RFC 9112 lets a server choose: it drops `Content-Length` beside
//! `Transfer-Encoding`, takes a bare LF for a line end, and takes identical doubtful fields. Two servers in a row that
//! choose differently see different requests in the same bytes; that is how requests are smuggled past a proxy
//! (RFC 9112, section 11.2). So the door takes only what can be read in one way: this screen follows the framing of a
//! connection, lets bytes through, and stops at the first that it would not vouch for.
//!
//! Pure: bytes in, a verdict out. It costs one pass over each head and chunk line; bodies are counted, not read.

/// What the screen says about some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How many of the bytes may go to the parser. The others are shown to the screen again, first.
    pub(crate) pass: usize,
    /// Why not more, if not all.
    pub(crate) then: Then,
}

/// How it goes on after the bytes that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// With more bytes from the client: what is left over is a part of a head, or nothing.
    ReadOn,
    /// The request just passed asks to switch protocols. What follows is HTTP only if that is declined.
    AwaitSwitch,
    /// Not at all.
    Refuse(Refusal),
}

/// Why a request was not taken. The text is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The head is larger than the limit.
    #[error("the request's header fields are too large")]
    HeadTooLarge,
    /// The head did not arrive in time.
    #[error("the request's header fields took too long to arrive")]
    HeadTooSlow,
    /// A line ends in a bare CR or LF, or holds NUL.
    #[error("the request's head contains a bare CR or LF, or NUL")]
    BareControl,
    /// Not `METHOD target HTTP/1.1`.
    #[error("the request line is malformed")]
    RequestLine,
    /// A field continues on a second line, which RFC 9112 withdrew.
    #[error("a header field is folded over two lines")]
    Folded,
    /// A field without colon, with a bad name, or with whitespace before its colon.
    #[error("a header field is malformed")]
    Field,
    /// No `Host`, several, or one that is no host.
    #[error("the request needs exactly one valid Host")]
    Host,
    /// `Content-Length` is not one number.
    #[error("Content-Length is not one valid number")]
    ContentLength,
    /// Other than `chunked`, in a version that has none, or twice.
    #[error("Transfer-Encoding must be exactly \"chunked\", once, in HTTP/1.1")]
    TransferEncoding,
    /// Two statements about where the body ends.
    #[error("a request must not have both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    /// `CONNECT`: the door is no forward proxy.
    #[error("CONNECT is not supported here")]
    Connect,
    /// A chunk's size line, its end, or a trailer field.
    #[error("the chunked body is malformed")]
    Chunk,
}

/// Where in the stream of requests the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// In data of which this much is left, followed by what.
    Data {
        left: u64,
        chunked: bool,
    },
    ChunkSize,
    /// At the CRLF after a chunk's data; true: the CR has passed.
    ChunkEnd(bool),
    Trailers,
    Switch,
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Screen {
    at: At,
    asks_to_switch: bool,
    max_head_bytes: usize,
    /// How much of the head shown last has been searched for its end.
    searched: usize,
    /// Bytes of the chunk-size line or trailers so far.
    line_bytes: usize,
}

/// The longest chunk-size line, with its extensions, and the most bytes of trailers.
const MAX_CHUNK_LINE_BYTES: usize = 256;
const MAX_TRAILER_BYTES: usize = 8 * 1024;

/// The longest chunk size in hexadecimal digits: 2^60 bytes are enough, and cannot overflow.
const MAX_CHUNK_DIGITS: usize = 15;

impl Screen {
    pub(crate) fn new(max_head_bytes: usize) -> Self {
        Self { at: At::Head, asks_to_switch: false, max_head_bytes, searched: 0, line_bytes: 0 }
    }

    /// Whether a request's body is on its way.
    pub(crate) fn in_body(&self) -> bool {
        !matches!(self.at, At::Head | At::Switch)
    }

    /// The switch was declined: HTTP goes on.
    pub(crate) fn switch_declined(&mut self) {
        self.asks_to_switch = false;
        self.at = At::Head;
    }

    /// Looks at the bytes that follow those that passed.
    pub(crate) fn look(&mut self, bytes: &[u8]) -> Verdict {
        let mut pass = 0;
        while let Some(rest) = bytes.get(pass..).filter(|rest| !rest.is_empty()) {
            let step = match self.at {
                At::Head => self.head(rest),
                At::Data { left, chunked } => Ok(self.data(rest, left, chunked)),
                At::ChunkSize => self.chunk_size(rest),
                At::ChunkEnd(cr_passed) => self.chunk_end(rest, cr_passed),
                At::Trailers => self.trailers(rest),
                At::Switch => return Verdict { pass, then: Then::AwaitSwitch },
            };
            match step {
                Ok(0) => break,
                Ok(passed) => pass += passed,
                Err(refusal) => return Verdict { pass, then: Then::Refuse(refusal) },
            }
        }
        let then = if self.at == At::Switch { Then::AwaitSwitch } else { Then::ReadOn };
        Verdict { pass, then }
    }

    fn data(&mut self, bytes: &[u8], left: u64, chunked: bool) -> usize {
        let passed = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - passed as u64;
        self.at = match (left, chunked) {
            (0, true) => At::ChunkEnd(false),
            (0, false) => self.after_message(),
            (left, chunked) => At::Data { left, chunked },
        };
        passed
    }

    fn after_message(&self) -> At {
        if self.asks_to_switch { At::Switch } else { At::Head }
    }

    /// Passes a whole head or nothing.
    fn head(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        // RFC 9112, section 2.2: empty lines before the request line are to be ignored.
        let blank = bytes.chunks_exact(2).take_while(|pair| *pair == b"\r\n").count() * 2;
        let head = &bytes[blank..];
        let from = self.searched.saturating_sub(3).min(head.len());
        let Some(end) = find(&head[from..], b"\r\n\r\n").map(|at| from + at + 4) else {
            // A bare LF is found here, not after a wait for a CRLF that never comes. What was searched before is not
            // checked again, but for the CR that a LF needs.
            let unchecked = if head.get(from) == Some(&b'\n') { from.saturating_sub(1) } else { from };
            check_line_ends(&head[unchecked..])?;
            self.searched = head.len();
            return if bytes.len() > self.max_head_bytes { Err(Refusal::HeadTooLarge) } else { Ok(0) };
        };
        self.searched = 0;
        if blank + end > self.max_head_bytes {
            return Err(Refusal::HeadTooLarge);
        }
        let head = &head[..end];
        check_line_ends(head)?;
        let framing = Framing::of(head)?;
        self.asks_to_switch = framing.asks_to_switch;
        self.at = match framing.length {
            Length::Chunked => self.begin_line(At::ChunkSize),
            Length::Bytes(0) => self.after_message(),
            Length::Bytes(left) => At::Data { left, chunked: false },
        };
        Ok(blank + end)
    }

    fn begin_line(&mut self, at: At) -> At {
        self.line_bytes = 0;
        at
    }

    /// Passes a whole size line (`1*HEXDIG [chunk-ext] CRLF`) or nothing.
    fn chunk_size(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let shown = &bytes[..bytes.len().min(MAX_CHUNK_LINE_BYTES)];
        let Some(end) = find(shown, b"\n") else {
            let hopeless = shown.len() == MAX_CHUNK_LINE_BYTES || parse_chunk_size(shown).is_err();
            return if hopeless { Err(Refusal::Chunk) } else { Ok(0) };
        };
        let line = shown[..end].strip_suffix(b"\r").ok_or(Refusal::Chunk)?;
        let size = parse_chunk_size(line)?.ok_or(Refusal::Chunk)?;
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(Refusal::Chunk);
        }
        self.at = match size {
            0 => self.begin_line(At::Trailers),
            left => At::Data { left, chunked: true },
        };
        Ok(end + 1)
    }

    fn chunk_end(&mut self, bytes: &[u8], cr_passed: bool) -> Result<usize, Refusal> {
        match (cr_passed, bytes.first()) {
            (false, Some(b'\r')) => self.at = At::ChunkEnd(true),
            (true, Some(b'\n')) => self.at = self.begin_line(At::ChunkSize),
            _ => return Err(Refusal::Chunk),
        }
        Ok(1)
    }

    /// Passes a whole trailer line, or the empty one at the end, or nothing.
    fn trailers(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let room = MAX_TRAILER_BYTES - self.line_bytes;
        let shown = &bytes[..bytes.len().min(room)];
        let Some(end) = find(shown, b"\n") else {
            return if shown.len() == room { Err(Refusal::Chunk) } else { Ok(0) };
        };
        let line = shown[..end].strip_suffix(b"\r").ok_or(Refusal::Chunk)?;
        if line.is_empty() {
            self.at = self.after_message();
        } else {
            check_line_ends(line).map_err(|_| Refusal::Chunk)?;
            split_field(line).map_err(|_| Refusal::Chunk)?;
            self.line_bytes += end + 1;
        }
        Ok(end + 1)
    }
}

/// The size that a size line begins with; None while there is no digit yet.
fn parse_chunk_size(line: &[u8]) -> Result<Option<u64>, Refusal> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let whole = line.get(digits).is_none_or(|after| matches!(after, b';' | b' ' | b'\t' | b'\r'));
    if !whole || digits > MAX_CHUNK_DIGITS || (digits == 0 && !line.is_empty()) {
        return Err(Refusal::Chunk);
    }
    if let Some(extension) = line.get(digits..).map(<[u8]>::trim_ascii).filter(|rest| !rest.is_empty())
        && extension[0] != b';'
    {
        return Err(Refusal::Chunk);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| Refusal::Chunk)?;
    Ok(u64::from_str_radix(text, 16).ok())
}

/// Every CR is followed by LF, every LF preceded by CR, and no NUL. A CR at the very end may yet get its LF.
fn check_line_ends(bytes: &[u8]) -> Result<(), Refusal> {
    let mut after_cr = false;
    for byte in bytes {
        let good = match byte {
            0 => false,
            b'\n' => after_cr,
            _ => !after_cr,
        };
        if !good {
            return Err(Refusal::BareControl);
        }
        after_cr = *byte == b'\r';
    }
    Ok(())
}

/// What a head says about what follows it.
struct Framing {
    length: Length,
    asks_to_switch: bool,
}

enum Length {
    Bytes(u64),
    Chunked,
}

impl Framing {
    /// Reads a head whose lines end well; its last line is empty.
    fn of(head: &[u8]) -> Result<Self, Refusal> {
        let mut lines = Lines(head);
        let http_11 = check_request_line(lines.next().ok_or(Refusal::RequestLine)?)?;
        let mut content_length = None;
        let mut chunked = false;
        let mut asks_to_switch = false;
        let mut hosts = 0;
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = split_field(line)?;
            // Most fields have another length than these five.
            match name.len() {
                4 if name.eq_ignore_ascii_case(b"host") => {
                    hosts += 1;
                    check_host(value)?;
                }
                7 if name.eq_ignore_ascii_case(b"upgrade") => asks_to_switch = http_11,
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    let length = parse_content_length(value)?;
                    if content_length.is_some_and(|before| before != length) {
                        return Err(Refusal::ContentLength);
                    }
                    content_length = Some(length);
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if chunked || !http_11 || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refusal::TransferEncoding);
                    }
                    chunked = true;
                }
                _ => {}
            }
        }
        if hosts > 1 || (http_11 && hosts == 0) {
            return Err(Refusal::Host);
        }
        let length = match (content_length, chunked) {
            (Some(_), true) => return Err(Refusal::LengthAndEncoding),
            (None, true) => Length::Chunked,
            (length, false) => Length::Bytes(length.unwrap_or(0)),
        };
        Ok(Self { length, asks_to_switch })
    }
}

/// The lines of a head, without their CRLF.
struct Lines<'h>(&'h [u8]);

impl<'h> Iterator for Lines<'h> {
    type Item = &'h [u8];

    fn next(&mut self) -> Option<&'h [u8]> {
        let end = find(self.0, b"\r\n")?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 2..];
        Some(line)
    }
}

/// True for HTTP/1.1, false for HTTP/1.0. The parser behind checks the method and the target themselves.
fn check_request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let whole = parts.next().is_none();
    let visible = |part: &[u8]| !part.is_empty() && part.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    if !(whole && method.is_some_and(visible) && target.is_some_and(visible)) {
        return Err(Refusal::RequestLine);
    }
    match version {
        Some(b"HTTP/1.1") => Ok(true),
        Some(b"HTTP/1.0") => Ok(false),
        _ => Err(Refusal::RequestLine),
    }
}

/// Name and value of a field line, the value without surrounding whitespace.
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(Refusal::Folded);
    }
    let colon = find(line, b":").ok_or(Refusal::Field)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Refusal::Field);
    }
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(Refusal::Field);
    }
    Ok((name, value.trim_ascii()))
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Enough of RFC 3986 that no two readers find different hosts in it. An empty one is legal.
fn check_host(value: &[u8]) -> Result<(), Refusal> {
    let good = value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+=".contains(byte));
    if good { Ok(()) } else { Err(Refusal::Host) }
}

fn parse_content_length(value: &[u8]) -> Result<u64, Refusal> {
    // `u64::from_str` would take a sign.
    let digits = value.iter().all(u8::is_ascii_digit).then_some(value);
    digits
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok())
        .ok_or(Refusal::ContentLength)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shows the bytes piece by piece, as a connection would: what passes, and the refusal if there is one.
    fn show(bytes: &[u8], pieces: &[usize]) -> (usize, Option<Refusal>) {
        let mut screen = Screen::new(512);
        let (mut passed, mut shown) = (0, 0);
        for piece in pieces.iter().copied().chain([bytes.len()]) {
            shown = (shown + piece).min(bytes.len());
            loop {
                let verdict = screen.look(&bytes[passed..shown]);
                passed += verdict.pass;
                match verdict.then {
                    Then::ReadOn => break,
                    Then::AwaitSwitch => screen.switch_declined(),
                    Then::Refuse(refusal) => return (passed, Some(refusal)),
                }
            }
        }
        (passed, None)
    }

    /// Requests, whole and broken, in small pieces that proptest strings together.
    fn fragments() -> impl Strategy<Value = Vec<u8>> {
        let fragment = prop::sample::select(vec![
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nlatte",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "0\r\nX: y\r\n\r\n",
            "\r\n",
            "\n",
            "\r",
            "X: y\r\n",
            "0",
            "a;b",
            " ",
            "\0",
        ]);
        prop::collection::vec(fragment, 0..12).prop_map(|fragments| fragments.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_the_bytes_arrive(
            bytes in fragments(),
            pieces in prop::collection::vec(1_usize..40, 0..40),
        ) {
            let told = |(passed, refusal): (usize, Option<Refusal>)| (passed, refusal.is_some());
            let whole = told(show(&bytes, &[]));
            prop_assert_eq!(told(show(&bytes, &pieces)), whole);
            prop_assert_eq!(told(show(&bytes, &vec![1; bytes.len()])), whole);
        }

        #[test]
        fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            show(&bytes, &[]);
        }
    }
}
