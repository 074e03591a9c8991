//! The request parser: what it accepts, what it answers to nonsense, and that neither depends on how bytes arrive.

use geode_resp::parse::{CommandLimits, LINE_BYTES, Parser, ProtocolError};
use proptest::prelude::*;

type Command = Vec<Vec<u8>>;

/// Feeds `stream` in pieces that end at the given places, as a connection does: complete commands leave the input.
fn parse_pieces(
    stream: &[u8],
    ends: &[usize],
    limits: &CommandLimits,
) -> (Vec<Command>, Option<ProtocolError>) {
    let mut commands = Vec::new();
    let mut parser = Parser::default();
    let mut input = Vec::new();
    let mut from = 0;
    for end in ends.iter().copied().chain([stream.len()]) {
        let end = end.clamp(from, stream.len());
        input.extend_from_slice(&stream[from..end]);
        from = end;
        loop {
            match parser.parse(&mut input, limits) {
                Err(error) => return (commands, Some(error)),
                Ok(None) => break,
                Ok(Some(length)) => {
                    let command: Command =
                        parser.arguments(&input).iter().map(|argument| argument.to_vec()).collect();
                    commands.extend(Some(command).filter(|command| !command.is_empty()));
                    input.drain(..length);
                }
            }
        }
    }
    (commands, None)
}

fn parse(stream: &[u8]) -> (Vec<Command>, Option<ProtocolError>) {
    parse_pieces(stream, &[], &CommandLimits::default())
}

fn encoded(commands: &[Command]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for command in commands {
        bytes.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for argument in command {
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

fn any_command() -> impl Strategy<Value = Command> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..20)
}

/// Bytes that look enough like the protocol to get deep into the parser.
fn nearly_a_request() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any_command().prop_map(|command| encoded(&[command])),
        Just(b"PING\r\n".to_vec()),
        Just(b"set k \"a b\"\n".to_vec()),
        Just(b"*0\r\n".to_vec()),
        Just(b"*-1\r\n\r\n".to_vec()),
        Just(b"*2\r\n$1\r\n".to_vec()),
        Just(b"$3\r\n".to_vec()),
        "[*$\"'\\\\x0-9 \r\n-]{0,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_was_encoded_comes_back(commands in prop::collection::vec(any_command(), 0..8)) {
        prop_assert_eq!(parse(&encoded(&commands)), (commands, None));
    }

    #[test]
    fn any_split_gives_the_same(
        stream in nearly_a_request(),
        mut ends in prop::collection::vec(0_usize..300, 0..20),
    ) {
        ends.sort_unstable();
        let limits = CommandLimits { arguments: 30, argument_bytes: 40 };
        let whole = parse_pieces(&stream, &[], &limits);
        let bytewise: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(&parse_pieces(&stream, &ends, &limits), &whole);
        prop_assert_eq!(&parse_pieces(&stream, &bytewise, &limits), &whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(stream in prop::collection::vec(any::<u8>(), 0..200)) {
        let (commands, _) = parse(&stream);
        prop_assert!(commands.iter().flatten().map(Vec::len).sum::<usize>() <= stream.len());
    }
}

#[test]
fn malformed_requests_have_the_texts_of_redis() {
    let long = |start: &str| [start.as_bytes(), &[b'1'; LINE_BYTES + 1]].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"*x\r\n".into(), "Protocol error: invalid multibulk length"),
        (b"*\r\n".into(), "Protocol error: invalid multibulk length"),
        (b"*+1\r\n".into(), "Protocol error: invalid multibulk length"),
        (b"*01\r\n".into(), "Protocol error: invalid multibulk length"),
        (b"*1048577\r\n".into(), "Protocol error: invalid multibulk length"),
        (b"*99999999999999999999\r\n".into(), "Protocol error: invalid multibulk length"),
        (b"*1\r\n$-1\r\n".into(), "Protocol error: invalid bulk length"),
        (b"*1\r\n$\r\n".into(), "Protocol error: invalid bulk length"),
        (b"*1\r\n$a\r\n".into(), "Protocol error: invalid bulk length"),
        (b"*1\r\n$67108865\r\n".into(), "Protocol error: invalid bulk length"),
        (b"*1\r\nfoo\r\n".into(), "Protocol error: expected '$', got 'f'"),
        (b"*1\r\n\r\n\r\n".into(), "Protocol error: expected '$', got ' '"),
        (b"set a \"b\r\n".into(), "Protocol error: unbalanced quotes in request"),
        (long("*"), "Protocol error: too big mbulk count string"),
        (long("*1\r\n$"), "Protocol error: too big bulk count string"),
        (long("GET "), "Protocol error: too big inline request"),
    ];
    for (stream, text) in cases {
        let shown = stream[..stream.len().min(30)].escape_ascii().to_string();
        let (commands, error) = parse(&[b"PING\r\n", stream.as_slice()].concat());
        assert_eq!(commands, [[b"PING"]], "{shown}");
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(text), "{shown}");
    }
}

#[test]
fn limits_are_met_exactly() {
    let limits = CommandLimits { arguments: 2, argument_bytes: 3 };
    let command =
        |arguments: &[&str]| vec![arguments.iter().map(|a| a.as_bytes().to_vec()).collect::<Command>()];
    let run = |arguments: &[&str]| parse_pieces(&encoded(&command(arguments)), &[], &limits);
    assert_eq!(run(&["abc", "abc"]), (command(&["abc", "abc"]), None));
    assert_eq!(run(&["a", "b", "c"]).1, Some(ProtocolError::InvalidArgumentCount));
    assert_eq!(run(&["abcd"]).1, Some(ProtocolError::InvalidArgumentLength));
    let line = |length: usize| [vec![b'x'; length], b"\n".to_vec()].concat();
    assert_eq!(parse(&line(LINE_BYTES)), (vec![vec![vec![b'x'; LINE_BYTES]]], None));
    assert_eq!(parse(&line(LINE_BYTES + 1)).1, Some(ProtocolError::InlineLine));
}

/// A parser that began again with every byte would look at 2^43 bytes here and not come back.
#[test]
fn a_large_argument_byte_by_byte_costs_no_more_than_whole() {
    let argument = vec![b'x'; 4 * 1024 * 1024];
    let mut stream = encoded(&[vec![b"SET".to_vec(), b"key".to_vec(), argument.clone()]]);
    let mut parser = Parser::default();
    let limits = CommandLimits::default();
    for end in 0..stream.len() {
        assert_eq!(parser.parse(&mut stream[..end], &limits), Ok(None));
    }
    assert_eq!(parser.parse(&mut stream, &limits), Ok(Some(stream.len())));
    assert_eq!(parser.arguments(&stream).as_slice(), [b"SET".as_slice(), b"key", &argument]);
}

#[test]
fn many_arguments_are_given_back_between_commands() {
    let limits = CommandLimits::default();
    let mut parser = Parser::default();
    let mut stream = encoded(&[vec![Vec::new(); 1000]]);
    assert_eq!(parser.parse(&mut stream, &limits), Ok(Some(stream.len())));
    assert!(parser.heap_bytes() >= 8000);
    parser.shrink();
    assert_eq!(parser.heap_bytes(), 0);
}
