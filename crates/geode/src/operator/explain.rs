//! `geode explain WHO`: which regions serve a client, in which order, and why.

use serde_json::Value;

use super::{AdminArgs, OperatorError, Outcome, say_json};
use crate::terminal::say;

/// Options of `geode explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// A client: a place (a city, a cloud region, a region of the planet) or an IP address.
    #[arg(value_name = "WHO")]
    who: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Asks a geode for its decision and prints it.
///
/// # Errors
/// No geode answers, or none knows who that is.
pub(crate) async fn explain(args: ExplainArgs) -> Result<Outcome, OperatorError> {
    let admin = args.admin.find().await?;
    let path = format!("/v1/explain?who={}", escape(&args.who));
    let answer: Value = admin.ask(&path).await?;
    if args.admin.json {
        say_json(&answer)?;
    } else {
        say(&admin.ask_text(&format!("{path}&format=text")).await?)?;
    }
    // Somebody must serve every client.
    let candidates = answer["decision"]["candidates"].as_array();
    let served = candidates.is_some_and(|all| all.iter().any(|candidate| candidate["eligible"] == true));
    Ok(if served { Outcome::Good } else { Outcome::Bad })
}

/// A query value: every byte that is not unreserved, escaped (RFC 3986, section 2.3).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte))
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn anything_can_stand_in_a_query() {
        assert_eq!(escape("2001:db8:1::7"), "2001%3Adb8%3A1%3A%3A7");
        assert_eq!(escape("São Paulo&format=text"), "S%C3%A3o%20Paulo%26format%3Dtext");
    }
}
