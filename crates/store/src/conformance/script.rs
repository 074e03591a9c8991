//! The language of the rules: one step a line, to be read by people.
//!
//! ```text
//! rule what it shows              begins a rule on an empty planet
//! own rule what it shows          the same, where Redis answers otherwise or not at all
//! regions us eu                   the planet's regions; one if not said
//! conditional local               SET NX and XX are decided locally
//! us SET k 1 -> OK                a command in a region and its reply
//! SET k 1 -> OK                   the same in the first region
//! all GET k -> "1"                in every region
//! us GEODE.VECTOR -> $seen        the reply is kept under a name
//! eu GEODE.WAIT $seen 10 -> 1     and stands for a word later
//! send us eu                      what us wrote reaches eu
//! sync                            everything reaches everybody; digests must be equal
//! advance 1500                    milliseconds pass
//! advance us 100                  one region's clock runs ahead
//! # a comment
//! ```
//! A reply is spelled as [`super::Value`] displays it; `~` before an array means in any order, `*` stands for any reply.
//! Words with spaces or odd bytes are quoted, with `\n`, `\xHH`, `\"` and `\\`.

/// One rule.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// What it shows.
    pub title: String,
    /// Whether Redis answers otherwise or not at all.
    pub own: bool,
    /// The planet's regions.
    pub regions: Vec<String>,
    /// Whether conditional writes are decided locally.
    pub conditional_local: bool,
    /// What happens, with the line in the file.
    pub steps: Vec<(usize, Step)>,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A command in one region, `None` for each, and the reply it must have.
    Command {
        /// Where.
        region: Option<String>,
        /// The words.
        arguments: Vec<Vec<u8>>,
        /// The spelling of the reply.
        expected: String,
    },
    /// What one region wrote reaches another.
    Send {
        /// Who wrote.
        from: String,
        /// Who receives.
        to: String,
    },
    /// Everything reaches everybody.
    Sync,
    /// Time passes, in one region or in all.
    Advance {
        /// Where, `None` everywhere.
        region: Option<String>,
        /// How much.
        milliseconds: u64,
    },
}

impl Rule {
    /// Whether the rule can be replayed against a plain Redis server: one region, no moved clocks, no own answers.
    pub fn suits_redis(&self) -> bool {
        let plain = |(_, step): &(usize, Step)| matches!(step, Step::Command { .. });
        !self.own && self.regions.len() == 1 && self.steps.iter().all(plain)
    }
}

/// All rules of a file. An error names the line.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let mut rules: Vec<Rule> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let own = line.strip_prefix("own rule ");
        if let Some(title) = own.or_else(|| line.strip_prefix("rule ")) {
            let regions = vec!["here".to_owned()];
            rules.push(Rule { title: title.into(), own: own.is_some(), regions, ..Rule::default() });
            continue;
        }
        let rule = rules.last_mut().ok_or_else(|| format!("line {number}: a step before the first rule"))?;
        read_line(rule, number, line).map_err(|problem| format!("line {number}: {problem}: {line}"))?;
    }
    Ok(rules)
}

fn read_line(rule: &mut Rule, number: usize, line: &str) -> Result<(), &'static str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let step = match words[..] {
        ["regions", ref regions @ ..] => {
            rule.regions = regions.iter().map(|&region| region.to_owned()).collect();
            return Ok(());
        }
        ["conditional", "local"] => {
            rule.conditional_local = true;
            return Ok(());
        }
        ["sync"] => Step::Sync,
        ["send", from, to] => Step::Send { from: region(rule, from)?, to: region(rule, to)? },
        ["advance", ms] => Step::Advance { region: None, milliseconds: milliseconds(ms)? },
        ["advance", at, ms] => {
            Step::Advance { region: Some(region(rule, at)?), milliseconds: milliseconds(ms)? }
        }
        _ => read_command(rule, line)?,
    };
    rule.steps.push((number, step));
    Ok(())
}

fn read_command(rule: &Rule, line: &str) -> Result<Step, &'static str> {
    let (command, expected) = line.rsplit_once(" -> ").ok_or("neither a command with ` -> ` nor a step")?;
    let mut arguments = split_words(command)?;
    let first = arguments.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
    let region = if first == "all" {
        arguments.remove(0);
        None
    } else if rule.regions.contains(&first) {
        arguments.remove(0);
        Some(first)
    } else {
        rule.regions.first().cloned()
    };
    Ok(Step::Command { region, arguments, expected: expected.trim().into() })
}

fn region(rule: &Rule, name: &str) -> Result<String, &'static str> {
    rule.regions
        .iter()
        .find(|region| *region == name)
        .cloned()
        .ok_or("a region that the planet does not have")
}

fn milliseconds(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "not a number of milliseconds")
}

/// Words separated by spaces, quoted where they contain some.
fn split_words(line: &str) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (word, behind) = read_quoted(quoted)?;
            words.push(word);
            rest = behind.trim_start();
        } else {
            let (word, behind) = rest.split_once(' ').unwrap_or((rest, ""));
            words.push(word.as_bytes().to_vec());
            rest = behind.trim_start();
        }
    }
    Ok(words)
}

fn read_quoted(text: &str) -> Result<(Vec<u8>, &str), &'static str> {
    let mut word = Vec::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((word, &text[at + 1..])),
            '\\' => match characters.next().map(|(_, escaped)| escaped) {
                Some('n') => word.push(b'\n'),
                Some('r') => word.push(b'\r'),
                Some('x') => {
                    let digits = text.get(at + 2..at + 4).ok_or("\\x wants two digits")?;
                    word.push(u8::from_str_radix(digits, 16).map_err(|_| "\\x wants two digits")?);
                    characters.next();
                    characters.next();
                }
                Some(literal @ ('"' | '\\')) => word.push(literal as u8),
                _ => return Err("an unknown escape"),
            },
            other => word.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err("a quote without an end")
}
