//! Questions that an operator asks the whole planet through one geode, which asks the others over links.
//!
//! One connection carries one question and its answer: a line of JSON there, and a length (u32, big-endian) and JSON
//! back. Questions are rare, so a round trip more for the connection does not matter.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use geode_link::{Dialer, Purpose};
use geode_planet::RegionName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};

/// A question is a few names and numbers.
const MAX_QUESTION_BYTES: u64 = 16 * 1024;
/// The longest answer that is read: some ten thousand conflicts.
const MAX_ANSWER_BYTES: u32 = 16 * 1024 * 1024;
/// How long a geode may take to ask, to find its answer, and to send it: together with the round trips.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked of one geode about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub(crate) enum Question {
    /// What its store holds: version vector and digests, and some keys of these key ranges.
    Verify {
        /// Key ranges to name example keys of.
        #[serde(default)]
        ranges: Vec<u8>,
    },
    /// Conflicts that it found.
    Conflicts(ConflictsQuestion),
    /// Not a question: it is to get all its rows anew from another region.
    Repair,
}

/// Which conflicts are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConflictsQuestion {
    /// At most so many of each region, the latest.
    pub(crate) limit: usize,
    /// Only of this key, or of this id of GEODE.ONCE.
    #[serde(default)]
    pub(crate) key: Option<String>,
    /// Only those after this time, in microseconds since 1970.
    #[serde(default)]
    pub(crate) since_us: u64,
    /// Of each of these regions only those after its time: what was seen already.
    #[serde(default)]
    pub(crate) after_us: BTreeMap<RegionName, u64>,
    /// How long a region that has none may wait for one.
    #[serde(default)]
    pub(crate) wait_ms: u64,
}

/// What came back: an answer, or in words why there is none.
pub(crate) type Answer = Result<Value, String>;

/// Asks every peer at once. Takes at most a few seconds, whoever is away.
pub(crate) async fn ask_all(dialer: &Dialer, question: &Question) -> BTreeMap<RegionName, Answer> {
    let mut asked = tokio::task::JoinSet::new();
    for peer in dialer.peers() {
        let (dialer, question) = (dialer.clone(), question.clone());
        asked.spawn(async move {
            let answer = ask_one(&dialer, &peer, &question).await;
            (peer, answer)
        });
    }
    asked.join_all().await.into_iter().collect()
}

/// Asks one peer. Takes at most a few seconds.
pub(crate) async fn ask_one(dialer: &Dialer, peer: &RegionName, question: &Question) -> Answer {
    let answer = tokio::time::timeout(PATIENCE, ask(dialer, peer, question)).await;
    answer.unwrap_or_else(|_| Err(format!("{peer} did not answer within {} s", PATIENCE.as_secs())))
}

async fn ask(dialer: &Dialer, peer: &RegionName, question: &Question) -> Answer {
    let stream = dialer.dial(peer, Purpose::Question).await.map_err(|error| error.to_string())?;
    converse(stream, question).await.map_err(|error| format!("{peer} broke off its answer: {error}"))?
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    question: &Question,
) -> std::io::Result<Answer> {
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await?;
    let length = stream.read_u32().await?;
    if length > MAX_ANSWER_BYTES {
        return Err(std::io::Error::other(format!("{length} bytes are too many")));
    }
    let mut answer = Vec::new();
    stream.take(length.into()).read_to_end(&mut answer).await?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Reads one question from a peer and sends back what `answer` finds.
pub(crate) async fn serve<F: Future<Output = Answer>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl FnOnce(Question) -> F,
) {
    // Who asks and then goes away, or dawdles, gets no answer; there is nobody to tell.
    let _ = tokio::time::timeout(PATIENCE, reply(stream, answer)).await;
}

async fn reply<F: Future<Output = Answer>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl FnOnce(Question) -> F,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(MAX_QUESTION_BYTES).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice(&line) {
        Ok(question) => answer(question).await,
        Err(error) => Err(format!("this geode does not know the question: {error}")),
    };
    let bytes = serde_json::to_vec(&answer)?;
    match u32::try_from(bytes.len()) {
        Ok(length) if length <= MAX_ANSWER_BYTES => {
            stream.write_u32(length).await?;
            stream.write_all(&bytes).await?;
        }
        _ => {
            let bytes = serde_json::to_vec(&Answer::Err("the answer is too long: ask for less".into()))?;
            stream.write_u32(bytes.len() as u32).await?;
            stream.write_all(&bytes).await?;
        }
    }
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (there, here) = tokio::join!(TcpStream::connect(address), listener.accept());
        (there.unwrap(), here.unwrap().0)
    }

    /// Asks, and answers with whatever `answer` makes of the question.
    async fn ask_about(question: &Question, answer: fn(Question) -> Answer) -> Answer {
        let (asking, answering) = connected().await;
        let served = serve(answering, |question| async move { answer(question) });
        tokio::join!(converse(asking, question), served).0.unwrap()
    }

    #[tokio::test]
    async fn a_question_gets_its_answer_or_the_reason_why_not() {
        let question = Question::Verify { ranges: vec![3, 17] };
        let echo = |question| Ok(serde_json::to_value(question).unwrap());
        let answer = ask_about(&question, echo).await.unwrap();
        assert_eq!(serde_json::from_value::<Question>(answer).unwrap(), question);
        let answer =
            ask_about(&Question::Conflicts(ConflictsQuestion { limit: 5, ..Default::default() }), |_| {
                Err("not yet".into())
            })
            .await;
        assert_eq!(answer, Err("not yet".into()));
        let endless = |_| Ok(Value::String("x".repeat(MAX_ANSWER_BYTES as usize)));
        let answer =
            ask_about(&Question::Conflicts(ConflictsQuestion { limit: 5, ..Default::default() }), endless)
                .await;
        assert_eq!(answer, Err("the answer is too long: ask for less".into()));
    }

    #[tokio::test]
    async fn what_is_no_question_is_told_so_in_bounded_memory() {
        for bytes in [b"{\"ask\":\"the-future\"}\n".to_vec(), vec![b'['; 2 * MAX_QUESTION_BYTES as usize]] {
            let (mut asking, answering) = connected().await;
            let served = serve(answering, |_| async { panic!("that was no question") });
            let asked = async {
                asking.write_all(&bytes).await.unwrap();
                let length = asking.read_u32().await.unwrap();
                let mut answer = vec![0; length as usize];
                asking.read_exact(&mut answer).await.unwrap();
                serde_json::from_slice::<Answer>(&answer).unwrap().unwrap_err()
            };
            let (error, ()) = tokio::join!(asked, served);
            assert!(error.starts_with("this geode does not know the question: "), "{error}");
        }
    }

    #[tokio::test]
    async fn an_answer_beyond_all_bounds_is_not_read() {
        let (asking, mut answering) = connected().await;
        let question = Question::Conflicts(ConflictsQuestion::default());
        let (answer, ()) = tokio::join!(converse(asking, &question), async {
            answering.write_u32(u32::MAX).await.unwrap();
        });
        assert_eq!(answer.unwrap_err().to_string(), "4294967295 bytes are too many");
    }
}
