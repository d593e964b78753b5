//! Which processors this program runs on, and with what priority.

use crate::failure::Failure;
use clap::Args;
use multifd_core::{ThreadRole, ThreadStart};
use multifd_transport_socket::batch_scheduling;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::str::FromStr;
use std::sync::Arc;

/// Processors and priority.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Threads")]
pub(crate) struct Threads {
    /// Run on these processors only, such as 0-3,8; so that a guest's own stay free
    #[arg(long, value_name = "LIST")]
    cpus: Option<Cpus>,
    /// Run with this niceness: 1 to 19 gives way to others, below 0 needs a privilege
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    nice: Option<i8>,
}

impl Threads {
    /// Applies both to the calling thread. Every thread started from now on inherits them.
    pub(crate) fn apply(&self) -> Result<(), Failure> {
        let failed = |doing| {
            move |error: rustix::io::Errno| Failure::System {
                doing,
                cause: error.into(),
            }
        };
        if let Some(Cpus(set)) = &self.cpus {
            sched_setaffinity(None, set).map_err(failed("setting the processors (--cpus)"))?;
        }
        if let Some(nice) = self.nice {
            rustix::process::setpriority_process(None, nice.into())
                .map_err(failed("setting the niceness (--nice)"))?;
        }
        Ok(())
    }
}

/// Threads that receive do not preempt those that send.
pub(crate) fn receiving() -> ThreadStart {
    Arc::new(|role| {
        if let ThreadRole::Receive { .. } = role {
            batch_scheduling();
        }
    })
}

/// A list of processors.
#[derive(Debug, Clone)]
struct Cpus(CpuSet);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of processors such as 0-3,8");
        let number = |text: &str| {
            let number = text.parse().ok().filter(|&number| number < CpuSet::MAX_CPU);
            number.ok_or_else(bad)
        };
        let mut set = CpuSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            (first..=last).for_each(|cpu| set.set(cpu));
        }
        Ok(Self(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        let cpus = |text: &str| -> Vec<usize> {
            let Cpus(set) = text.parse().unwrap();
            (0..CpuSet::MAX_CPU)
                .filter(|&cpu| set.is_set(cpu))
                .collect()
        };
        assert_eq!(cpus("0"), [0]);
        assert_eq!(cpus("0-3,8"), [0, 1, 2, 3, 8]);
        for bad in ["", "a", "3-1", "0,", "1-", "99999"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }
}
