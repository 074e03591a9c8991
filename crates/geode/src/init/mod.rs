//! `geode init`: what a planet of several machines needs before it can run. Its planet.toml, its authority, and for each
//! region the bundle by which it joins. Nothing that is there is changed, so that running it again adds what is missing:
//! a region that planet.toml names since.

mod files;
mod template;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use geode_link::{Bundle, utc_day};
use geode_planet::{HostPort, Planet, RegionName};
use serde::Serialize;

pub(crate) use files::{AuthorityFiles, FilesError};
use template::NewRegion;

use crate::operator::Outcome;
use crate::terminal::{complain, say};

/// The planet's name where neither the user nor the directory gives one.
const DEFAULT_NAME: &str = "planet";
const DEFAULT_REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "ap-southeast-2"];
/// What everybody may read.
const PUBLIC: u32 = 0o644;

/// Make what a planet of several machines needs: planet.toml, its certificate authority, one bundle per region.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing that is there is changed. After adding a region to planet.toml, run it again: it makes the bundle \
                  that is missing.\n\nA bundle is a secret, valid for a year. To renew one: `geode init --renew NAME`, and \
                  copy it over the old one; a running geode takes it over by itself.\n\nExamples:\n  geode init --name acme \
                  --domain api.acme.example --regions us-east-1,eu-west-1\n  geode init --region us-east-1=203.0.113.10 \
                  --region eu-west-1=198.51.100.10\n  geode init --renew eu-west-1"
)]
pub(crate) struct InitArgs {
    /// Where everything is written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The planet's name. Without it that of the directory.
    #[arg(long)]
    name: Option<String>,
    /// The name that users call.
    #[arg(long)]
    domain: Option<String>,
    /// The regions: cloud regions (us-east-1), cities (sydney), or names of your own.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    regions: Vec<String>,
    /// A region with the address where others reach it; port 7400 unless said otherwise.
    #[arg(long = "region", value_name = "NAME=ADDR")]
    addressed: Vec<String>,
    /// Make a new bundle for this region in place of the old one.
    #[arg(long, value_name = "REGION")]
    renew: Vec<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Why nothing, or not everything, was made.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Files(#[from] FilesError),
    #[error("{doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Planet(String),
    #[error("the answer cannot be written: {0}")]
    Output(io::Error),
}

/// Makes what is missing, and says what was made.
pub(crate) fn run(args: &InitArgs) -> ExitCode {
    match init(args).and_then(|report| report.say(args.json).map_err(InitError::Output)) {
        Ok(()) => Outcome::Good.into(),
        Err(error) => {
            complain(&format!("geode init: {error}"));
            Outcome::Failed.into()
        }
    }
}

/// What stands in the directory now.
#[derive(Debug, Serialize)]
struct Report {
    planet: String,
    directory: PathBuf,
    files: Vec<Made>,
    /// Whether planet.toml still holds what only the user knows.
    placeholders: bool,
}

/// One file.
#[derive(Debug, Serialize)]
struct Made {
    path: PathBuf,
    what: What,
    /// Whose bundle it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<RegionName>,
    /// The last day of a bundle, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Made,
    Kept,
    Renewed,
}

fn init(args: &InitArgs) -> Result<Report, InitError> {
    let directory = &args.dir;
    fs::create_dir_all(directory).map_err(|source| InitError::Io {
        doing: "cannot create",
        path: directory.clone(),
        source,
    })?;
    let file = directory.join("planet.toml");
    let (text, what) = match fs::read_to_string(&file) {
        Ok(text) => (no_contradiction(args, &file).map(|()| text)?, What::Kept),
        Err(error) if error.kind() == ErrorKind::NotFound => (new_planet(args)?, What::Made),
        Err(source) => return Err(InitError::Io { doing: "cannot read", path: file, source }),
    };
    let planet = Planet::parse(&text, &file.display().to_string())
        .map_err(|errors| InitError::Planet(errors.to_string()))?;
    let renew = regions_to_renew(args, &planet)?;
    let regions: Vec<RegionName> = planet.regions.keys().cloned().collect();
    let authority = AuthorityFiles::open(directory, &planet.name, &regions)?;
    if what == What::Made {
        files::write_new(&file, &text, PUBLIC)?;
    }
    let made = |path, what, region, bundle: Option<&Bundle>| Made {
        path,
        what,
        region,
        valid_until: bundle.and_then(Bundle::valid_until).map(utc_day),
    };
    let mut files = vec![made(file, what, None, None)];
    let of_authority = if authority.made { What::Made } else { What::Kept };
    files.extend(authority.authority_paths().map(|path| made(path, of_authority, None, None)));
    for region in regions {
        let path = files::bundle_path(directory, &region);
        let (bundle, what) = if renew.contains(&region) {
            (authority.write_bundle(&region)?, What::Renewed)
        } else if let Some(kept) = authority.read_bundle(&region)? {
            (kept, What::Kept)
        } else {
            (authority.write_bundle(&region)?, What::Made)
        };
        files.push(made(path, what, Some(region), Some(&bundle)));
    }
    let placeholders = text.contains("# PLACEHOLDER");
    Ok(Report { planet: planet.name, directory: directory.clone(), files, placeholders })
}

/// What is asked for a new planet cannot be had where there is one.
fn no_contradiction(args: &InitArgs, file: &Path) -> Result<(), InitError> {
    let given = [
        ("--name", args.name.is_some()),
        ("--domain", args.domain.is_some()),
        ("--regions", !args.regions.is_empty()),
        ("--region", !args.addressed.is_empty()),
    ];
    let given: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect();
    if given.is_empty() {
        return Ok(());
    }
    let (file, options) = (file.display(), given.join(", "));
    Err(InitError::Usage(format!(
        "{file} is there already, so {options} cannot be given: edit the file, then run `geode init` again for bundles that \
         are missing"
    )))
}

fn regions_to_renew(args: &InitArgs, planet: &Planet) -> Result<BTreeSet<RegionName>, InitError> {
    let region = |name: &String| {
        planet.regions.get(name.as_str()).map(|region| region.name.clone()).ok_or_else(|| {
            let known: Vec<&str> = planet.regions.keys().map(RegionName::as_str).collect();
            InitError::Usage(format!("--renew: there is no region {name:?}; there are {}", known.join(", ")))
        })
    };
    args.renew.iter().map(region).collect()
}

/// The text of a new planet.toml.
fn new_planet(args: &InitArgs) -> Result<String, InitError> {
    let mut regions: Vec<NewRegion> = Vec::new();
    let named = args.regions.iter().map(|name| (name.as_str(), None));
    let addressed = args.addressed.iter().map(|text| match text.split_once('=') {
        Some((name, address)) => (name, Some(address)),
        None => (text.as_str(), Some("")),
    });
    for (name, address) in named.chain(addressed) {
        let region = new_region(name, address)?;
        match regions.iter_mut().find(|known| known.name == region.name) {
            Some(known) if known.address.is_none() && region.address.is_some() => *known = region,
            Some(known) => {
                return Err(InitError::Usage(format!(
                    "{} is named twice: name each region once",
                    known.name
                )));
            }
            None => regions.push(region),
        }
    }
    if regions.is_empty() {
        regions = DEFAULT_REGIONS.iter().map(|name| new_region(name, None)).collect::<Result<_, _>>()?;
    }
    let name = args.name.clone().unwrap_or_else(|| name_of(&args.dir));
    Ok(template::planet_toml(&name, args.domain.as_deref(), &regions))
}

fn new_region(name: &str, address: Option<&str>) -> Result<NewRegion, InitError> {
    let name = RegionName::new(name).map_err(|error| InitError::Usage(error.to_string()))?;
    let address = address.map(|text| {
        let with_port = || format!("{text}:{}", template::LINK_PORT).parse::<HostPort>().ok();
        text.parse().ok().or_else(with_port).ok_or_else(|| {
            InitError::Usage(format!(
                "--region {name}={text}: write it like --region {name}=203.0.113.10 or --region {name}=eu.acme.example:7400"
            ))
        })
    });
    Ok(NewRegion { name, address: address.transpose()? })
}

/// The directory's name if a planet can have it.
fn name_of(directory: &Path) -> String {
    let path = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let plain = plain && !name.starts_with('-') && !name.ends_with('-') && (1..=32).contains(&name.len());
    if plain { name } else { DEFAULT_NAME.to_owned() }
}

impl Report {
    fn say(&self, json: bool) -> io::Result<()> {
        // Serialising these types cannot fail: their keys are strings.
        let json = json.then(|| serde_json::to_string_pretty(self).unwrap_or_default() + "\n");
        say(&json.unwrap_or_else(|| self.text()))
    }

    /// What is where, and what to do next.
    fn text(&self) -> String {
        let name = |made: &Made| made.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let width = self.files.iter().map(|made| name(made).len()).max().unwrap_or(0);
        let mut text = format!("planet {} in {}\n\n", self.planet, self.directory.display());
        for made in &self.files {
            let what = match made.what {
                What::Made => "made",
                What::Kept => "kept",
                What::Renewed => "renewed",
            };
            let note = match (&made.valid_until, name(made).as_str()) {
                (Some(day), _) => format!("a secret of this region, valid until {day}"),
                (None, "ca.key") => "a secret: keep it off the machines that serve".to_owned(),
                (None, "ca.pem") => "the planet's authority".to_owned(),
                (None, _) if self.placeholders => "set what is marked PLACEHOLDER".to_owned(),
                (None, _) => "the same for every region".to_owned(),
            };
            text += &format!("  {:width$}  {what:7}  {note}\n", name(made));
        }
        text += "\nGive each machine planet.toml and its own bundle, side by side, and run there:\n  geode run --config \
                 planet.toml --region NAME\n";
        text
    }
}
