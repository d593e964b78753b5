//! What this machine is, as far as it matters to the figures.

use serde::Serialize;
use std::fmt;

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Bytes of memory by their name in `/proc/meminfo`.
pub(crate) fn memory(name: &str) -> Option<u64> {
    let all = read("/proc/meminfo");
    let mut values = all.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = values.find(|(found, _)| *found == name)?;
    let kib: u64 = value.strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The machine a run was done on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    processors: usize,
    model: String,
    memory_mib: u64,
    kernel: String,
    is_virtual: bool,
    congestion_control: String,
    huge_pages: String,
    tmpfs_huge_pages: String,
    /// Free memory is reported to the host in pieces of a page times two to this power, and taken
    /// back. No piece is larger than that by 10, so nothing is if this is more, which only some
    /// kernels can be told. -1: no host has asked for it; empty: the kernel does not know of it.
    free_page_reporting_order: String,
}

impl Machine {
    pub(crate) fn of_this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let value = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        // Of several words the one in brackets is the setting.
        let setting = |path: &str| {
            let all = read(path);
            let chosen = all
                .split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'))
                .map(|(word, _)| word.to_owned());
            chosen.unwrap_or(all)
        };
        Self {
            processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            model: value("model name").unwrap_or_default(),
            memory_mib: memory("MemTotal").unwrap_or(0) >> 20,
            kernel: read("/proc/sys/kernel/osrelease"),
            is_virtual: value("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
            huge_pages: setting("/sys/kernel/mm/transparent_hugepage/enabled"),
            tmpfs_huge_pages: setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            free_page_reporting_order: read(
                "/sys/module/page_reporting/parameters/page_reporting_order",
            ),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({}), {} MiB, Linux {}, {}, huge pages {} (tmpfs {}){}",
            self.processors,
            if self.is_virtual {
                "virtual processors"
            } else {
                "processors"
            },
            self.model,
            self.memory_mib,
            self.kernel,
            self.congestion_control,
            self.huge_pages,
            self.tmpfs_huge_pages,
            match self.free_page_reporting_order.parse() {
                Ok(order @ 0..=10) => format!(", free page reporting from order {order}"),
                _ => String::new(),
            }
        )
    }
}
