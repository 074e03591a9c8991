//! The planet's authority and its bundles as files of a directory: `ca.pem`, `ca.key` and `REGION.bundle`.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use geode_link::{Authority, AuthorityError, Bundle, BundleError};
use geode_planet::RegionName;

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
/// What only its owner may read.
const SECRET: u32 = 0o600;
/// What everybody may read.
const PUBLIC: u32 = 0o644;

/// Why the files are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("{doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {source}", .directory.display())]
    Authority { directory: PathBuf, source: AuthorityError },
    #[error("{}: {source}; --renew {region} makes another", .path.display())]
    Bundle { path: PathBuf, region: RegionName, source: BundleError },
    #[error(
        "{} has {found} but no {missing}: bring both here, as `geode init` made them, since bundles of another authority \
         are refused by those that are in use",
        .directory.display()
    )]
    HalfAuthority { directory: PathBuf, found: String, missing: &'static str },
}

/// A directory's authority.
pub(crate) struct AuthorityFiles {
    directory: PathBuf,
    authority: Authority,
    /// Whether it was made just now.
    pub(crate) made: bool,
}

impl AuthorityFiles {
    /// The authority of `planet`, whose regions may have bundles here already; made if there is nothing of it yet.
    ///
    /// # Errors
    /// A part of it is missing, or it is another planet's; the directory cannot be written.
    pub(crate) fn open(directory: &Path, planet: &str, regions: &[RegionName]) -> Result<Self, FilesError> {
        let read = |name: &str| {
            let path = directory.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(source) => Err(FilesError::Io { doing: "cannot read", path, source }),
            }
        };
        let half = |found: String, missing| {
            Err(FilesError::HalfAuthority { directory: directory.to_owned(), found, missing })
        };
        let failed = |source| FilesError::Authority { directory: directory.to_owned(), source };
        let (authority, made) = match (read(CERTIFICATE_FILE)?, read(KEY_FILE)?) {
            (Some(certificate), Some(key)) => {
                (Authority::read(planet, &certificate, &key).map_err(failed)?, false)
            }
            (Some(_), None) => return half(CERTIFICATE_FILE.into(), KEY_FILE),
            (None, Some(_)) => return half(KEY_FILE.into(), CERTIFICATE_FILE),
            (None, None) => {
                let bundles = regions.iter().map(|region| bundle_path(directory, region));
                if let Some(bundle) = bundles.into_iter().find(|path| path.exists()) {
                    let name = bundle.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return half(name, KEY_FILE);
                }
                (Authority::new(planet).map_err(failed)?, true)
            }
        };
        for region in regions {
            authority.check_name(region).map_err(failed)?;
        }
        let files = Self { directory: directory.to_owned(), authority, made };
        if made {
            write_new(&files.path(KEY_FILE), &files.authority.key_pem(), SECRET)?;
            write_new(&files.path(CERTIFICATE_FILE), &files.authority.certificate_pem(), PUBLIC)?;
        }
        Ok(files)
    }

    /// A new bundle for a region, in place of the one that may be there.
    ///
    /// # Errors
    /// The region's name fits no certificate; the directory cannot be written.
    pub(crate) fn write_bundle(&self, region: &RegionName) -> Result<Bundle, FilesError> {
        let failed = |source| FilesError::Authority { directory: self.directory.clone(), source };
        let bundle = self.authority.issue(region).map_err(failed)?;
        replace(&bundle_path(&self.directory, region), &bundle.text(), SECRET)?;
        Ok(bundle)
    }

    /// The bundle that a region has here already.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub(crate) fn read_bundle(&self, region: &RegionName) -> Result<Option<Bundle>, FilesError> {
        let path = bundle_path(&self.directory, region);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FilesError::Io { doing: "cannot read", path, source }),
        };
        let read = Bundle::read(&text);
        read.map(Some).map_err(|source| FilesError::Bundle { path, region: region.clone(), source })
    }

    /// The authority's files.
    pub(crate) fn authority_paths(&self) -> [PathBuf; 2] {
        [self.path(CERTIFICATE_FILE), self.path(KEY_FILE)]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Where a region's bundle is in a directory.
pub(crate) fn bundle_path(directory: &Path, region: &RegionName) -> PathBuf {
    directory.join(format!("{region}.bundle"))
}

/// Writes a file that is not there yet, whole or not at all.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), FilesError> {
    let temporary = write_temporary(path, text, mode)?;
    // Unlike a rename, a link fails if there is something by that name.
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    linked.map_err(|source| FilesError::Io { doing: "cannot write", path: path.to_owned(), source })
}

fn replace(path: &Path, text: &str, mode: u32) -> Result<(), FilesError> {
    let temporary = write_temporary(path, text, mode)?;
    let renamed = fs::rename(&temporary, path);
    renamed.map_err(|source| FilesError::Io { doing: "cannot write", path: path.to_owned(), source })
}

fn write_temporary(path: &Path, text: &str, mode: u32) -> Result<PathBuf, FilesError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| FilesError::Io { doing: "cannot write", path: path.to_owned(), source })?;
    Ok(temporary)
}
