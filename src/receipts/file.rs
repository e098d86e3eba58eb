//! The file of receipts: lines are appended and synced, and never changed or removed. Knows nothing of what a line
//! says.
//!
//! A lock (flock) keeps processes apart while one appends: the end of the file is read before it is written. The file
//! is opened for each line, so that one that was renamed away is created anew.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long other processes that append are waited for, and how often the lock is tried.
const LOCK_TIMEOUT: Duration = Duration::from_millis(1500);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Checks that lines can be appended. Creates the file if it is missing.
///
/// # Errors
/// Why they cannot.
pub(super) fn check(path: &Path) -> io::Result<()> {
    open(path).map(drop)
}

/// Appends a line, in one write, and waits until it is on the disk.
///
/// # Errors
/// Why it is not there, or not wholly.
pub(super) fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = open(path)?;
    // Closing the file releases the lock.
    lock(&file)?;
    // What was cut when the disk was full stays as it is: it shows that a receipt is missing.
    let start = if ends_within_line(&mut file)? { "\n" } else { "" };
    let text = format!("{start}{line}\n");
    let written = file.write(text.as_bytes())?;
    if written < text.len() {
        let what = format!("only {written} of {} bytes were written", text.len());
        return Err(io::Error::new(io::ErrorKind::WriteZero, what));
    }
    file.sync_all()?;
    match path.parent() {
        // That a new file is there has to be on the disk, too.
        Some(directory) if written == file.metadata()?.len() as usize => sync_directory(directory),
        _ => Ok(()),
    }
}

/// An empty path is the current directory.
fn sync_directory(directory: &Path) -> io::Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    File::open(directory)?.sync_all()
}

/// A process that holds the lock for longer does not hold up this one's answer.
fn lock(file: &File) -> io::Result<()> {
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < end => sleep(LOCK_INTERVAL),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

fn ends_within_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn path() -> PathBuf {
        std::env::temp_dir().join(format!("action-executor-receipts-{}", uuid::Uuid::now_v7()))
    }

    #[test]
    fn lines_are_appended_and_the_file_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let path = path();
        check(&path).expect("can be written");
        append(&path, "a").expect("is appended");
        append(&path, "b").expect("is appended");
        assert_eq!(fs::read_to_string(&path).expect("is read"), "a\nb\n");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(&path).expect("is removed");
    }

    #[test]
    fn a_line_that_was_cut_stays_and_the_next_one_begins_after_it() {
        let path = path();
        fs::write(&path, "a\nb").expect("is written");
        append(&path, "c").expect("is appended");
        assert_eq!(fs::read_to_string(&path).expect("is read"), "a\nb\nc\n");
        fs::remove_file(&path).expect("is removed");
    }

    #[test]
    fn an_irregular_file_is_refused() {
        for path in ["/dev/null", "/nonexistent/receipts", "/"] {
            assert!(check(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_lock_that_another_process_holds_is_waited_for_until_the_timeout() {
        let path = path();
        append(&path, "a").expect("is appended");
        let other = File::open(&path).expect("is opened");
        other.lock().expect("is locked");
        let began = Instant::now();
        assert!(append(&path, "b").is_err());
        assert!(began.elapsed() >= LOCK_TIMEOUT);
        drop(other);
        append(&path, "c").expect("is appended");
        assert_eq!(fs::read_to_string(&path).expect("is read"), "a\nc\n");
        fs::remove_file(&path).expect("is removed");
    }

    #[test]
    fn threads_that_append_at_once_do_not_mix_their_lines() {
        let path = path();
        let line = |number: usize| format!("{number:03}").repeat(3000);
        std::thread::scope(|scope| {
            for number in 0..16 {
                let path = &path;
                scope.spawn(move || append(path, &line(number)).expect("is appended"));
            }
        });
        let text = fs::read_to_string(&path).expect("is read");
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..16).map(line).collect::<Vec<_>>());
        fs::remove_file(&path).expect("is removed");
    }
}
