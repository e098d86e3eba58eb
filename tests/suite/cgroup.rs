//! A cgroup with a limit on memory, in whichever version of cgroups has that controller here. Knows nothing of what
//! runs in it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

/// Where the second version may be mounted, and the first one's memory controller.
const SECOND: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const FIRST: &str = "/sys/fs/cgroup/memory";

const BUFFERS_LIMIT: &str = "memory.kmem.tcp.limit_in_bytes";

/// A cgroup; removed when dropped.
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// A cgroup with so many bytes; none where this process may make none. What is not there it reports as skipped.
    pub fn with_memory(bytes: u64) -> Option<Self> {
        let second = SECOND.into_iter().find(|mount| has_memory_controller(Path::new(mount)));
        if second.is_none() {
            static REPORTED: Once = Once::new();
            REPORTED.call_once(|| {
                eprintln!("skipped: cgroup v2, which has no memory controller here");
            });
        }
        let made = match second {
            Some(mount) => Self::make(Path::new(mount), "memory.max", bytes),
            None => Self::make(Path::new(FIRST), "memory.limit_in_bytes", bytes),
        };
        if made.is_none() {
            eprintln!("skipped: no cgroup with a limit on memory can be made here, as root");
        }
        made
    }

    fn make(parent: &Path, limit: &str, bytes: u64) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("action-executor-{}-{number}", std::process::id());
        let cgroup = Cgroup { directory: parent.join(name) };
        fs::create_dir(&cgroup.directory).ok()?;
        // The first version counts the kernel's buffers only where they have a limit.
        let _ = fs::write(cgroup.directory.join(BUFFERS_LIMIT), bytes.to_string());
        fs::write(cgroup.directory.join(limit), bytes.to_string()).ok().map(|()| cgroup)
    }

    /// The file to which a process writes its id to enter.
    pub fn processes(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// The most memory that its processes have had, in bytes; in the second version with the kernel's buffers.
    pub fn peak(&self) -> u64 {
        let files = ["memory.peak", "memory.max_usage_in_bytes"];
        files.into_iter().find_map(|name| self.read(name)).expect("is known")
    }

    /// The most memory of the kernel's buffers for TCP, which the first version counts by itself, in bytes.
    pub fn peak_of_buffers(&self) -> Option<u64> {
        self.read("memory.kmem.tcp.max_usage_in_bytes")
    }

    fn read(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.directory.join(name)).ok()?.trim().parse().ok()
    }
}

/// Whether cgroups of the second version are mounted here, with the controller of memory for their children.
fn has_memory_controller(mount: &Path) -> bool {
    let controllers = fs::read_to_string(mount.join("cgroup.subtree_control"));
    controllers.is_ok_and(|it| it.split_whitespace().any(|it| it == "memory"))
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have been killed, and leave it soon.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
