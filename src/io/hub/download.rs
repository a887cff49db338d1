//! One file from an address to a folder: resumed where it was interrupted, checked, and there whole or not at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{HubFile, TRIES, wait};
use crate::io::http::{Client, Failure, FailureKind, header, reader};
use crate::io::write::sync_folder;

/// What a file's content must give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256, of files in Git LFS or Xet.
    Sha256(String),
    /// SHA-1 as Git has it, of other files: of a header with the length, and the content.
    GitBlob(String),
}

/// How a file came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there, with the right content.
    WasThere,
    /// It was downloaded; of its bytes so many had been before.
    Downloaded(u64),
}

impl Checksum {
    /// The one that `hex` is, by its length.
    pub fn parse(hex: &str) -> Option<Self> {
        let hex = hex.to_ascii_lowercase();
        match hex.len() {
            _ if !hex.bytes().all(|b| b.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(hex)),
            40 => Some(Self::GitBlob(hex)),
            _ => None,
        }
    }

    fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// The same of what `file` holds, which is `size` bytes.
    fn of(&self, file: &mut File, size: u64) -> std::io::Result<String> {
        file.seek(SeekFrom::Start(0))?;
        match self {
            Self::Sha256(_) => digest(Sha256::new(), file),
            Self::GitBlob(_) => digest(Sha1::new_with_prefix(format!("blob {size}\0")), file),
        }
    }
}

fn digest(mut hash: impl Digest, file: &mut File) -> std::io::Result<String> {
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(n) => hash.update(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Brings what is at `url`, which is to be `wanted`, to `target`. `explain` has words for statuses.
pub(super) fn fetch(
    client: &Client,
    url: &str,
    target: &Path,
    wanted: &HubFile,
    on_bytes: &mut dyn FnMut(u64),
    explain: impl Fn(u16, Option<&str>) -> Option<String>,
) -> Result<Fetched> {
    let cannot = || format!("cannot write {}", target.display());
    if is_right(target, wanted).with_context(|| format!("cannot read {}", target.display()))? {
        on_bytes(wanted.size);
        return Ok(Fetched::WasThere);
    }
    let folder = target.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).with_context(cannot)?;
    let (path, mut file) = partial(target, wanted)?;
    let mut had = file.metadata().with_context(cannot)?.len();
    if had > wanted.size {
        file.set_len(0).with_context(cannot)?;
        had = 0;
    }
    on_bytes(had);
    let mut download = Download { client, url, wanted, file: &mut file, explain: &explain };
    download.complete(on_bytes).with_context(|| wanted.path.clone())?;
    let mut sum = wanted.checksum.of(&mut file, wanted.size).with_context(cannot)?;
    if sum != wanted.checksum.hex() && had > 0 {
        // What an earlier try left may be damaged.
        file.set_len(0).with_context(cannot)?;
        had = 0;
        let mut download = Download { client, url, wanted, file: &mut file, explain: &explain };
        download.complete(&mut |_| {}).with_context(|| wanted.path.clone())?;
        sum = wanted.checksum.of(&mut file, wanted.size).with_context(cannot)?;
    }
    if sum != wanted.checksum.hex() {
        let _ = std::fs::remove_file(&path);
        bail!(
            "{}: what came has the checksum {sum}, the hub says {}; it was removed",
            wanted.path,
            wanted.checksum.hex()
        );
    }
    file.sync_all().with_context(cannot)?;
    std::fs::rename(&path, target).with_context(cannot)?;
    sync_folder(folder).with_context(cannot)?;
    Ok(Fetched::Downloaded(had))
}

/// Whether `target` is there as `wanted`.
fn is_right(target: &Path, wanted: &HubFile) -> std::io::Result<bool> {
    let mut file = match File::open(target) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let facts = file.metadata()?;
    Ok(facts.is_file()
        && facts.len() == wanted.size
        && wanted.checksum.of(&mut file, wanted.size)? == wanted.checksum.hex())
}

/// What there is of `wanted`: a file beside `target`, named for the content, so that parts of two contents are never joined.
fn partial(target: &Path, wanted: &HubFile) -> Result<(PathBuf, File)> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let path = target.with_file_name(format!(".{name}.{}.part", &wanted.checksum.hex()[..16]));
    let cannot = || format!("cannot write {}", path.display());
    let is_other = std::fs::symlink_metadata(&path).is_ok_and(|facts| !facts.is_file());
    ensure!(!is_other, "cannot write {}: it is no regular file", path.display());
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(cannot)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("{}: another process is fetching it", target.display()),
        // Some file systems know no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok((path, file)),
    }
}

/// A download under way.
struct Download<'a> {
    client: &'a Client,
    url: &'a str,
    wanted: &'a HubFile,
    file: &'a mut File,
    explain: &'a dyn Fn(u16, Option<&str>) -> Option<String>,
}

impl Download<'_> {
    /// Goes on until all bytes are there.
    fn complete(&mut self, on_bytes: &mut dyn FnMut(u64)) -> Result<()> {
        let mut now = self.file.metadata()?.len();
        let (mut furthest, mut failures) = (now, 0);
        while now < self.wanted.size {
            let done = self.go_on(now, on_bytes);
            now = self.file.metadata()?.len();
            failures = if now > furthest { 1 } else { failures + 1 };
            furthest = furthest.max(now);
            match done {
                Ok(()) if failures < TRIES => {}
                Ok(()) => bail!("{}: answers with other parts of the file than it is asked for", self.url),
                Err(Stop::Failed(e)) if !e.kind.may_pass() => return Err(anyhow!("{e}")),
                Err(Stop::Failed(_)) if failures < TRIES => std::thread::sleep(wait(failures)),
                Err(Stop::Failed(e)) => {
                    let size = self.wanted.size;
                    bail!("{}: {e}; {now} of {size} bytes are here, the same command goes on from there", self.url)
                }
                Err(Stop::CannotWrite(e)) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Asks for what comes after the first `have` bytes and takes what comes.
    fn go_on(&mut self, have: u64, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Stop> {
        let range = format!("bytes={have}-");
        let headers = [("Range", range.as_str()), ("Accept-Encoding", "identity")];
        let reply = self.client.get(self.url, if have > 0 { &headers } else { &headers[1..] })?;
        let status = reply.status().as_u16();
        let starts = header(reply.headers(), "content-range")
            .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
        let begin = match (status, starts) {
            (200, _) => 0,
            (206, Some(start)) if start == have => have,
            // Not what was asked for: the whole then.
            (206 | 416, _) if have > 0 => {
                self.file.set_len(0)?;
                return Ok(());
            }
            _ => {
                if let Some(what) = (self.explain)(status, header(reply.headers(), "x-error-code")) {
                    return Err(Failure { what, kind: FailureKind::Refused }.into());
                }
                let refused = self.client.success(reply).err();
                let what = || format!("answered {status}, expected the file");
                return Err(refused.unwrap_or_else(|| Failure { what: what(), kind: FailureKind::Refused }).into());
            }
        };
        self.file.set_len(begin)?;
        self.file.seek(SeekFrom::Start(begin))?;
        let mut left = self.wanted.size - begin;
        let mut body = reader(reply);
        let mut piece = vec![0; 1 << 18];
        while left > 0 {
            let most = piece.len().min(left as usize);
            match body.read(&mut piece[..most]) {
                Ok(0) => return Err(self.client.failure(std::io::Error::from(ErrorKind::UnexpectedEof).into()).into()),
                Ok(n) => {
                    self.file.write_all(&piece[..n])?;
                    left -= n as u64;
                    on_bytes(n as u64);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.client.failure(e.into()).into()),
            }
        }
        Ok(())
    }
}

/// Why a download does not go on.
enum Stop {
    Failed(Failure),
    CannotWrite(std::io::Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::CannotWrite(error)
    }
}
