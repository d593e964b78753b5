//! A real Linux guest, built from Debian's packages (`tests/linux-guest/build`), and what it says
//! on its serial port.

use std::path::{Path, PathBuf};

/// The files it starts from.
#[derive(Debug)]
pub struct LinuxGuest {
    folder: PathBuf,
}

impl LinuxGuest {
    /// The guest, if `.ci/install` has built it. A test that needs it returns when not, having said
    /// so; with `CI` set that is a failure.
    pub fn find() -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/linux-guest");
        if folder.join("stamp").is_file() {
            return Some(Self { folder });
        }
        let why = "there is no Linux guest: .ci/install builds it";
        assert!(
            std::env::var_os("CI").is_none(),
            "no test with a Linux guest can run in CI: {why}"
        );
        eprintln!("SKIPPED: {why}");
        None
    }

    /// The arguments of a QEMU that runs it, on a disk of its own, which may be used by two: a
    /// guest and its restored copy.
    pub fn arguments(&self, disk: &Path) -> Vec<String> {
        self.sized(disk, 256, "")
    }

    /// The same with so many MiB of RAM, and more for the kernel's command line: `memory=MIB` is
    /// what it checks again and again (0: nothing), `dirty=MIB:RATE` what it writes to, at so many
    /// MiB a second.
    pub fn sized(&self, disk: &Path, mib: u32, append: &str) -> Vec<String> {
        if !disk.exists() {
            std::fs::copy(self.folder.join("disk.raw"), disk).unwrap();
        }
        let file = |name: &str| self.folder.join(name).to_str().unwrap().to_owned();
        let drive = format!(
            "file={},format=raw,if=none,id=disk,file.locking=off",
            disk.display()
        );
        let append = format!("console=ttyS0 quiet panic=1 {append}");
        let words = [
            "-M",
            "q35",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            &mib.to_string(),
            "-kernel",
            &file("vmlinuz"),
            "-initrd",
            &file("initrd.gz"),
            "-append",
            &append,
            "-drive",
            &drive,
            "-device",
            "virtio-blk-pci,drive=disk",
            "-accel",
            "tcg,thread=multi",
        ];
        words.map(String::from).to_vec()
    }
}

/// What the guest has said so far.
#[derive(Debug, Default)]
pub struct Said {
    /// Numbers of ticks, and when they were, in seconds of the guest's clock.
    pub ticks: Vec<(u64, f64)>,
    /// Passes over memory, and over the disk.
    pub memory: Vec<u64>,
    /// Files written and read.
    pub disk: Vec<u64>,
}

impl Said {
    /// The same without what it says of its disk, which goes on without a restored copy: memory and
    /// the clock are what must be right there.
    pub fn read_without_disk(serial: &str) -> Self {
        let ours = serial
            .lines()
            .filter(|line| !line.contains("DISK") && !line.contains("EXT4"));
        Self::read(&ours.flat_map(|line| [line, "\n"]).collect::<String>())
    }

    /// Reads the serial port's text; anything that went wrong in the guest is a failed test.
    pub fn read(serial: &str) -> Self {
        let mut said = Self::default();
        let whole = serial.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let mut words = line.split_whitespace();
            let (kind, number) = (
                words.next(),
                words.next().and_then(|word| word.parse().ok()),
            );
            assert!(
                !["BAD", "lockup", "stall", "Oops", "BUG", "panic", "error"]
                    .iter()
                    .any(|word| line.contains(word)),
                "the guest says {line:?}"
            );
            match (kind, number, words.next()) {
                (Some("TICK"), Some(number), Some(time)) => {
                    said.ticks
                        .extend(time.parse().ok().map(|time| (number, time)));
                }
                (Some("MEMORY"), Some(number), _) => said.memory.push(number),
                (Some("DISK"), Some(number), _) => said.disk.push(number),
                _ => {}
            }
        }
        said
    }

    /// The longest time between two ticks from a number on, in seconds of the guest's clock.
    pub fn longest_gap_since(&self, tick: u64) -> f64 {
        let later = self.ticks.iter().filter(|(number, _)| *number >= tick);
        let later: Vec<f64> = later.map(|(_, time)| *time).collect();
        later
            .windows(2)
            .map(|two| two[1] - two[0])
            .fold(0.0, f64::max)
    }
}
