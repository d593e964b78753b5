//! The figures of a run, as they go into the JSON and the chart.

use crate::machine::Machine;
use crate::straight::Straight;
use crate::transfer::Took;
use serde::Serialize;

/// One case and one pairing.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) group: String,
    pub(crate) channels: u8,
    pub(crate) who: &'static str,
    pub(crate) runs: Vec<Took>,
    /// The peer's median time over this one's; only where there is a peer.
    pub(crate) ratio: Option<f64>,
    /// This one's processor time over the peer's.
    pub(crate) cpu_ratio: Option<f64>,
    /// What went over the wire, over what `iperf3` moves with as many streams.
    pub(crate) of_iperf3: Option<f64>,
    /// System calls of both ends for each GiB of guest RAM.
    pub(crate) calls_per_gib: Option<f64>,
}

/// How fast this machine does something alone, in bytes a second.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    pub(crate) name: String,
    pub(crate) runs: Vec<f64>,
}

/// One point of a line.
#[derive(Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) who: &'static str,
    /// MiB of guest RAM, or channels.
    pub(crate) at: u64,
    pub(crate) seconds: Vec<f64>,
}

/// How time grows with one thing.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<Point>,
    /// The lines that time grows along with what there is to move; none where it should not grow.
    pub(crate) straight: Vec<Straight>,
    /// How far ours is from what it should be, as a share, and where.
    pub(crate) off: Option<f64>,
    pub(crate) off_is: &'static str,
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) qemu: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) limits: Vec<Limit>,
    pub(crate) rows: Vec<Row>,
    pub(crate) growth: Vec<Line>,
}

/// Least, middle and greatest; of an even number of values the greater one of the two in the
/// middle. Not of nothing.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    [
        values[0],
        values[values.len() / 2],
        values[values.len() - 1],
    ]
}

pub(crate) fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    spread(values)[1]
}
