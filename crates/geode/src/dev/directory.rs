//! The data directory of a planet on this machine: `planet.toml`, `planet.key`, the authority and the
//! bundles as `geode init` makes them, one directory per region, and, while
//! it runs, `lock` and `dev.json`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use geode_planet::Planet;

use super::DevError;
use super::existing::{difference, displacement, other_service, relocate, with_service};
use super::plan::Plan;
use crate::init::AuthorityFiles;

/// Bytes of the key that authenticates session tokens: an HMAC-SHA-256 key of the hash's own length.
const KEY_BYTES: usize = 32;
/// What `geode chaos` and the others read to find the planet that runs here.
pub(crate) const RUNNING_FILE: &str = "dev.json";

/// A directory that this process alone uses, until dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Directory {
    /// Creates or enters the directory, and keeps every other `geode dev` out.
    ///
    /// # Errors
    /// It is in use, or not writable.
    pub(super) fn enter(path: &Path) -> Result<Self, DevError> {
        fs::create_dir_all(path).map_err(|source| file("cannot create", path, source))?;
        let lock_file = path.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_file);
        let mut lock = opened.map_err(|source| file("cannot write", &lock_file, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Who holds it is only a courtesy.
                let _ = lock.read_to_string(&mut pid);
                let pid: String = pid.chars().filter(char::is_ascii_digit).collect();
                let owner = if pid.is_empty() { pid } else { format!(" (process {pid})") };
                return Err(DevError::DirectoryInUse { directory: path.to_owned(), owner });
            }
            Err(TryLockError::Error(source)) => return Err(file("cannot lock", &lock_file, source)),
        }
        let noted = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
        noted.map_err(|source| file("cannot write", &lock_file, source))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The planet of this directory: the one that is there, moved to the plan's addresses and with the service that was
    /// asked for, else the plan's. Nothing is written yet.
    ///
    /// # Errors
    /// The file is no planet, or another one.
    pub(super) fn draft(&self, plan: &Plan) -> Result<Draft, DevError> {
        let path = plan.planet_file();
        let parse = |text: &str| {
            let parsed = Planet::parse(text, &path.to_string_lossy());
            parsed.map_err(|errors| DevError::PlanetFile { file: path.clone(), details: errors.to_string() })
        };
        let other = |difference| DevError::OtherPlanet { directory: self.path.clone(), difference };
        let planned_text = plan.planet_toml();
        let planned = parse(&planned_text)?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Draft { planet: planned, text: Some(planned_text) });
            }
            Err(source) => return Err(file("cannot read", &path, source)),
        };
        let found = parse(&text)?;
        if let Some(difference) = difference(&planned, &found) {
            return Err(other(difference));
        }
        let mut adapted = relocate(&text, &planned, &found);
        let wanted = |planet: &Planet| other_service(&planned, planet).filter(|_| plan.command_given);
        if let Some(difference) = wanted(&found) {
            adapted = with_service(&adapted, &plan.run_value()).ok_or_else(|| other(difference))?;
        }
        let planet = parse(&adapted)?;
        match displacement(&planned, &planet).or_else(|| wanted(&planet)) {
            Some(difference) => Err(other(difference)),
            None => Ok(Draft { planet, text: (adapted != text).then_some(adapted) }),
        }
    }

    /// Writes what of the planet is not written yet, its key included.
    pub(super) fn keep(&self, plan: &Plan, draft: Draft) -> Result<Planet, DevError> {
        if let Some(text) = draft.text {
            write_whole(&plan.planet_file(), text.as_bytes(), 0o644)?;
        }
        self.ensure_key(&plan.key_file())?;
        self.issue_bundles(&draft.planet)?;
        Ok(draft.planet)
    }

    /// A bundle for every region, new at each start, so that none ever ends.
    fn issue_bundles(&self, planet: &Planet) -> Result<(), DevError> {
        let authority = AuthorityFiles::open(&self.path, &planet.name, &[])?;
        for region in planet.regions.keys() {
            authority.write_bundle(region)?;
        }
        Ok(())
    }

    fn ensure_key(&self, path: &Path) -> Result<(), DevError> {
        if path.exists() {
            return Ok(());
        }
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| DevError::System {
            doing: "the system gives no random numbers",
            source: std::io::Error::other(error.to_string()),
        })?;
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        write_whole(path, format!("{digits}\n").as_bytes(), 0o600)
    }

    /// Says where the running planet is found, for as long as the result lives.
    pub(super) fn announce(&self, ready: &str) -> Result<Announcement, DevError> {
        Announcement::at(&self.path.join(RUNNING_FILE), ready)
    }
}

/// A planet, and its file if that is not yet as it has to be.
#[derive(Debug)]
pub(super) struct Draft {
    planet: Planet,
    text: Option<String>,
}

impl Draft {
    /// The planet as it will be.
    pub(super) fn planet(&self) -> &Planet {
        &self.planet
    }
}

/// The file that names the running planet; removed when dropped.
#[derive(Debug)]
pub(super) struct Announcement {
    path: PathBuf,
}

impl Announcement {
    /// Announces the planet in a file of the user's choice.
    pub(super) fn at(path: &Path, ready: &str) -> Result<Self, DevError> {
        write_whole(path, ready.as_bytes(), 0o644)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // A file that stays only leads to a refused connection.
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes a file so that a reader sees all of it or nothing.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DevError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| file("cannot write", path, source))
}

fn file(doing: &'static str, path: &Path, source: std::io::Error) -> DevError {
    DevError::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use geode_planet::Program;

    use super::*;
    use crate::dev::plan::Addresses;

    fn plan(directory: &Path, names: &[&str], base_port: u16, command: &str) -> Plan {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let command = (!command.is_empty()).then(|| command.split(' ').map(str::to_owned).collect());
        Plan::new(&names, base_port, command, directory.to_owned(), Addresses::PerRegion).unwrap()
    }

    fn start(directory: &Directory, plan: &Plan) -> Planet {
        directory.keep(plan, directory.draft(plan).unwrap()).unwrap()
    }

    #[test]
    fn a_second_start_finds_the_planet_as_the_user_left_it() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("planet");
        let plan = plan(&path, &["tokyo", "lagos"], 7100, "geode demo");
        let directory = Directory::enter(&path).unwrap();
        let first = start(&directory, &plan);
        let key = fs::read(plan.key_file()).unwrap();
        assert_eq!(key.len(), 2 * KEY_BYTES + 1);
        assert_eq!(fs::metadata(plan.key_file()).unwrap().permissions().mode() & 0o777, 0o600);
        let edited = fs::read_to_string(plan.planet_file()).unwrap().replace("\"15ms\"", "\"99ms\"");
        fs::write(plan.planet_file(), &edited).unwrap();
        drop(directory);
        let second = start(&Directory::enter(&path).unwrap(), &plan);
        assert_ne!(first.steering.band, second.steering.band);
        assert_eq!(fs::read_to_string(plan.planet_file()).unwrap(), edited);
        assert_eq!(fs::read(plan.key_file()).unwrap(), key);
    }

    #[test]
    fn another_planet_is_not_touched() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path();
        let directory = Directory::enter(path).unwrap();
        start(&directory, &plan(path, &["tokyo", "lagos"], 7100, "geode demo"));
        let written = fs::read(path.join("planet.toml")).unwrap();
        let error = directory.draft(&plan(path, &["tokyo"], 7100, "geode demo")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            format!(
                "{} holds another planet (its regions are lagos,tokyo, not tokyo): start it with the same options as \
                 before, choose another directory with --data, change its planet.toml, or delete it with its data",
                path.display()
            )
        );
        assert_eq!(fs::read(path.join("planet.toml")).unwrap(), written);
    }

    #[test]
    fn a_planet_may_change_its_service_and_keeps_it_until_told_otherwise() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path();
        let directory = Directory::enter(path).unwrap();
        let regions = ["tokyo", "lagos"];
        let service = |planet: &Planet| planet.service.clone().unwrap().program;
        let node = Program::Run(vec!["node".to_owned(), "server.js".to_owned()]);
        let first = start(&directory, &plan(path, &regions, 7100, ""));
        assert_eq!(service(&first), Program::Run(vec!["geode".to_owned(), "demo".to_owned()]));
        assert_eq!(service(&start(&directory, &plan(path, &regions, 7100, "node server.js"))), node);
        assert_eq!(service(&start(&directory, &plan(path, &regions, 7200, ""))), node);
        let upstream = fs::read_to_string(path.join("planet.toml")).unwrap();
        let upstream =
            upstream.replace("run = [\"node\", \"server.js\"]", "upstream = \"http://127.0.0.1:3000\"");
        fs::write(path.join("planet.toml"), &upstream).unwrap();
        let error = directory.draft(&plan(path, &regions, 7200, "node server.js")).unwrap_err();
        let difference = "its service is `upstream 127.0.0.1:3000`, not `node server.js`";
        assert!(error.to_string().contains(difference), "{error}");
    }

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let temporary = tempfile::tempdir().unwrap();
        let first = Directory::enter(temporary.path()).unwrap();
        let error = Directory::enter(temporary.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            format!(
                "{} is in use by another `geode dev` (process {}): end that one, or choose another directory with \
                 --data",
                temporary.path().display(),
                std::process::id()
            )
        );
        drop(first);
        Directory::enter(temporary.path()).unwrap();
    }

    #[test]
    fn a_broken_file_is_told_with_all_its_mistakes() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path();
        let directory = Directory::enter(path).unwrap();
        fs::write(path.join("planet.toml"), "format = 1\n[regions.tokyo]\npublik = []\n").unwrap();
        let error = directory.draft(&plan(path, &["tokyo"], 7100, "geode demo")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("planet.toml:3: regions.tokyo.publik: unknown key"), "{error}");
    }

    #[test]
    fn an_announcement_lasts_as_long_as_the_planet() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::enter(temporary.path()).unwrap();
        let announcement = directory.announce("{}").unwrap();
        assert_eq!(fs::read_to_string(temporary.path().join(RUNNING_FILE)).unwrap(), "{}");
        drop(announcement);
        assert!(!temporary.path().join(RUNNING_FILE).exists());
    }
}
