//! A planet.toml that is already there: whether it is the planet that was asked for, and how it moves to other addresses.
//!
//! A planet is the same if it has the same regions, whose data it holds. Where it listens, where its directory lies and
//! which service it runs may change from one start to the next: the file is then changed in these places only, and stays
//! the user's otherwise.

use geode_planet::{Planet, Program, Region};

/// What in `found` makes it another planet than the planned one, in words.
pub(super) fn difference(planned: &Planet, found: &Planet) -> Option<String> {
    let names =
        |planet: &Planet| planet.regions.keys().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (planned, found) = (names(planned), names(found));
    (planned != found).then(|| format!("its regions are {found}, not {planned}"))
}

/// How the services of two planets differ, in words.
pub(super) fn other_service(planned: &Planet, found: &Planet) -> Option<String> {
    let command = |planet: &Planet| match planet.service.as_ref().map(|service| &service.program) {
        Some(Program::Run(words)) => words.join(" "),
        Some(Program::Upstream(address)) => format!("upstream {address}"),
        None => "nothing".to_owned(),
    };
    let (planned, found) = (command(planned), command(found));
    (planned != found).then(|| format!("its service is `{found}`, not `{planned}`"))
}

/// The text with this value for `run` in `[service]`, if it has one in the usual form.
pub(super) fn with_service(text: &str, run_value: &str) -> Option<String> {
    let service = text.find("\n[service]")? + 1;
    let run = service + text[service..].find("\nrun")? + 1;
    let open = run + text[run..].find('[')?;
    let close = open + end_of_list(&text[open..])?;
    Some([&text[..open], run_value, &text[close..]].concat())
}

/// Where a list of strings at the beginning of a TOML text is over.
fn end_of_list(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match (quote, letter) {
            // The next letter is escaped.
            (Some('"'), '\\') => _ = letters.next(),
            (Some(open), letter) if open == letter => quote = None,
            (None, '"' | '\'') => quote = Some(letter),
            (None, ']') => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The first thing that is elsewhere in `found` than planned, in words. Both have the same regions.
pub(super) fn displacement(planned: &Planet, found: &Planet) -> Option<String> {
    let moved = moves(planned, found).into_iter().next();
    moved.map(|Move { what, from, to }| format!("the {what} is {from}, not {to}"))
}

/// The text of `found` with everything where `planned` has it.
pub(super) fn relocate(text: &str, planned: &Planet, found: &Planet) -> String {
    let moves = moves(planned, found);
    let mut relocated = String::with_capacity(text.len());
    let mut rest = text;
    // In one pass, so that two regions can swap their addresses.
    while let Some(at) = rest.find(['"', '\'']) {
        let (before, value) = rest.split_at(at);
        let (quote, value) = value.split_at(1);
        let moved = moves.iter().find_map(|Move { from, to, .. }| {
            let after = value.strip_prefix(from.as_str())?.strip_prefix(quote)?;
            Some((to, after))
        });
        relocated.extend([before, quote]);
        rest = match moved {
            Some((to, after)) => {
                relocated.extend([to, quote]);
                after
            }
            None => value,
        };
    }
    relocated + rest
}

struct Move {
    what: String,
    from: String,
    to: String,
}

fn moves(planned: &Planet, found: &Planet) -> Vec<Move> {
    let key = |planet: &Planet| planet.key_file.as_ref().map(|path| path.display().to_string());
    let regions = planned.regions.values().zip(found.regions.values()).flat_map(|(planned, found)| {
        let of_region = places(planned).into_iter().zip(places(found));
        of_region.map(|((what, to), (_, from))| (format!("{what} of {}", planned.name), from, to))
    });
    let key = (
        "key file".to_owned(),
        key(found).unwrap_or_else(|| "nowhere".to_owned()),
        key(planned).unwrap_or_default(),
    );
    let all = regions.chain([key]).map(|(what, from, to)| Move { what, from, to });
    all.filter(|Move { from, to, .. }| from != to).collect()
}

/// Everything of a region that the options of `geode dev` decide.
fn places(region: &Region) -> [(&'static str, String); 7] {
    let settings = &region.settings;
    let doors: Vec<String> = settings.door_listen.iter().map(ToString::to_string).collect();
    let public: Vec<String> = region.public.iter().map(ToString::to_string).collect();
    let or_none = |address: Option<String>| address.unwrap_or_else(|| "nowhere".to_owned());
    [
        ("door", doors.join(" ")),
        ("Redis address", settings.redis_listen.to_string()),
        ("admin address", settings.admin_listen.to_string()),
        ("link", or_none(region.link.as_ref().map(ToString::to_string))),
        ("link_listen", or_none(settings.link_listen.map(|address| address.to_string()))),
        ("public address", public.join(" ")),
        ("data", settings.data.display().to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::dev::plan::{Addresses, Plan};

    fn text(names: &[&str], base_port: u16, directory: &str) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let plan = Plan::new(&names, base_port, None, PathBuf::from(directory), Addresses::PerRegion);
        plan.unwrap().planet_toml()
    }

    fn parse(text: &str) -> Planet {
        Planet::parse(text, "planet.toml").unwrap()
    }

    #[test]
    fn a_planet_moves_with_everything_else_as_the_user_left_it() {
        let ours = "\n# our own words about \"127.0.0.1:1\"\n";
        let old =
            text(&["tokyo", "lagos"], 7100, "/old").replace("band = \"15ms\"", "band = \"99ms\"") + ours;
        let new = text(&["lagos", "tokyo"], 7200, "/new");
        let (planned, found) = (parse(&new), parse(&old));
        assert_eq!(difference(&planned, &found), None);
        assert_eq!(
            displacement(&planned, &found).as_deref(),
            Some("the door of lagos is 127.0.0.12:7100, not 127.0.0.11:7200")
        );
        let relocated = relocate(&old, &planned, &found);
        assert_eq!(displacement(&planned, &parse(&relocated)), None);
        // The same file but for the order of regions, which stays, and the user's own words.
        let expected = text(&["tokyo", "lagos"], 7200, "/new");
        let swapped = |line: &str| {
            line.replace("127.0.0.11", "first")
                .replace("127.0.0.12", "127.0.0.11")
                .replace("first", "127.0.0.12")
        };
        let expected: String = expected.replace("band = \"15ms\"", "band = \"99ms\"") + ours;
        assert_eq!(relocated, expected.lines().map(|line| swapped(line) + "\n").collect::<String>());
    }

    #[test]
    fn another_service_takes_the_place_of_the_one_before() {
        let before = text(&["tokyo"], 7100, "/x");
        let node = with_service(&before, r#"["node", "a\"]b"]"#).unwrap();
        assert_eq!(node, before.replace(r#"["geode", "demo"]"#, r#"["node", "a\"]b"]"#));
        assert_eq!(with_service(&node, r#"["geode", "demo"]"#).as_deref(), Some(before.as_str()));
        let planned = parse(&before);
        assert_eq!(
            other_service(&planned, &parse(&node)).as_deref(),
            Some("its service is `node a\"]b`, not `geode demo`")
        );
        let wide = before.replace(r#"["geode", "demo"]"#, "[\n  'geode]', # [\n  \"demo\",\n]");
        assert_eq!(with_service(&wide, r#"["geode", "demo"]"#).as_deref(), Some(before.as_str()));
        assert_eq!(
            with_service(&before.replace("\nrun = [\"geode\", \"demo\"]", "\nupstream = \"x:1\""), "[]"),
            None
        );
    }

    #[test]
    fn a_place_that_the_options_cannot_reach_is_named() {
        let planned = parse(&text(&["tokyo"], 7100, "/x"));
        let edited = text(&["tokyo"], 7100, "/x")
            .replace("[\"127.0.0.11:7100\"]", "[\"127.0.0.11:7100\", \"127.0.0.11:8080\"]");
        let found = parse(&relocate(&edited, &planned, &parse(&edited)));
        assert_eq!(
            displacement(&planned, &found).as_deref(),
            Some("the door of tokyo is 127.0.0.11:7100 127.0.0.11:8080, not 127.0.0.11:7100")
        );
    }
}
