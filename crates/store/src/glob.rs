//! Redis's glob patterns: `*`, `?`, `[abc]`, `[a-z]`, `[^a]` and `\x`.

/// Whether `text` matches `pattern`. At most pattern × text steps: a star gives back only to the latest one, because
/// an earlier star could not do better.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Where to go on if what follows the latest star does not fit: behind the star, one byte of text later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            retry = Some((at, read));
            continue;
        }
        let fits = match (text.get(read), at < pattern.len()) {
            (Some(byte), true) => one(&pattern[at..], *byte),
            (None, false) => return true,
            _ => None,
        };
        if let Some(length) = fits {
            at += length;
            read += 1;
            continue;
        }
        let Some((behind, from)) = retry else { return false };
        if from >= text.len() {
            return false;
        }
        (at, read) = (behind, from + 1);
        retry = Some((behind, from + 1));
    }
}

/// The length of the first element of `pattern` if it takes `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => {
            let (taken, length) = class(rest, byte);
            taken.then_some(length + 1)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether the class that begins behind `[` takes `byte`, and its length. One without an end reaches to the end of the
/// pattern, as in Redis.
fn class(pattern: &[u8], byte: u8) -> (bool, usize) {
    let negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut taken = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                taken |= *escaped == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                taken |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                taken |= *literal == byte;
                at += 1;
            }
        }
    }
    (taken != negated, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::matches;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hbllo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            (r"h\*llo", "h*llo", true),
            (r"h\*llo", "hello", false),
            ("[ab", "b", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let pattern = "*a".repeat(60) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(20_000).as_bytes()));
    }

    /// The definition, by recursion.
    fn oracle(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => oracle(rest, text) || (!text.is_empty() && oracle(pattern, &text[1..])),
            ([b'?', rest @ ..], [_, behind @ ..]) => oracle(rest, behind),
            ([p, rest @ ..], [t, behind @ ..]) => p == t && oracle(rest, behind),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn stars_match_as_their_definition_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                oracle(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
