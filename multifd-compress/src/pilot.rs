//! What `Auto` knows, and how it decides: a model of the link and of what each choice costs, fed
//! with measurements. It knows no clock, so that it can be tried out without one.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Estimates of speeds.

mod window;

use std::time::Duration;
use window::{WAITING, WINDOW, WINDOW_PACKETS, Window};

/// How much better another choice must look before it is taken.
const MARGIN: f64 = 1.05;
/// The share of all computing that may be spent on comparing choices.
const COMPARING: f64 = 0.03;
const COMPARE_EVERY: Duration = Duration::from_millis(150);
/// Comparisons at the very start.
const FIRST_COMPARISONS: u64 = 3;
/// How much of what was measured before is kept when something new is.
const KEPT: f64 = 0.8;
/// How long the speed that a choice was seen to reach counts for more than the model's.
const FRESH: Duration = Duration::from_secs(5);

/// One choice: no compression, or zstd at a level.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// `None`: no compression.
    pub(crate) level: Option<i32>,
    /// Of the packets it was compared on: seconds and wire bytes, its own and those of the
    /// reference.
    own: (f64, f64),
    reference: (f64, f64),
    /// Guest bytes a second that it was seen to move while something waited for the link or the
    /// receiver, and when.
    seen: Option<(f64, Duration)>,
    /// Of what was sent by it.
    pub(crate) packets: u64,
    pub(crate) guest_bytes: u64,
    pub(crate) wire_bytes: u64,
}

/// The state of one transfer.
#[derive(Debug)]
pub(crate) struct Pilot {
    pub(crate) choices: Vec<Choice>,
    /// Index of the choice that every comparison includes: the quickest level.
    reference: usize,
    pub(crate) current: usize,
    /// Of the reference: seconds and wire bytes for each guest byte.
    cost: Option<(f64, f64)>,
    /// Threads that compress at the same time, as far as was seen.
    pub(crate) parallel: f64,
    most_parallel: f64,
    /// Bytes a second that the link takes; unknown while nothing has waited for it.
    pub(crate) link: Option<f64>,
    /// What it took when something last waited for it.
    measured: f64,
    window: Window,
    windows: u64,
    /// Quiet windows in a row, and how many of them it takes to believe that the link has become
    /// faster.
    quiet: u64,
    patience: u64,
    tried_faster: bool,
    comparisons: u64,
    compared_at: Duration,
    /// What the last comparison took.
    comparing: Duration,
    is_comparing: bool,
    /// When no compression was last tried, or taken.
    tried_none_at: Option<Duration>,
    /// The choice was taken a moment ago, and stays until a window has shown what it comes to.
    on_trial: bool,
    /// The latest time that was told, and the most bytes a packet had.
    now: Duration,
    packet_bytes: usize,
}

fn kept(old: f64, new: f64) -> f64 {
    KEPT * old + (1.0 - KEPT) * new
}

/// One result of a comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) choice: usize,
    pub(crate) computing: Duration,
    pub(crate) wire_bytes: usize,
}

impl Pilot {
    /// Starts with the quickest level. `levels` go from the quickest on.
    pub(crate) fn new(levels: &[i32], with_none: bool, parallel: f64) -> Self {
        let none = with_none.then_some(None);
        let all = none
            .into_iter()
            .chain(levels.iter().map(|&level| Some(level)));
        let choices = all
            .map(|level| Choice {
                level,
                own: (0.0, 0.0),
                reference: (0.0, 0.0),
                seen: None,
                packets: 0,
                guest_bytes: 0,
                wire_bytes: 0,
            })
            .collect();
        let first = usize::from(with_none);
        Self {
            choices,
            reference: first,
            current: first,
            cost: None,
            parallel,
            most_parallel: parallel,
            link: None,
            measured: 0.0,
            window: Window::default(),
            windows: 0,
            quiet: 0,
            patience: 1,
            tried_faster: false,
            comparisons: 0,
            compared_at: Duration::ZERO,
            comparing: Duration::ZERO,
            is_comparing: false,
            tried_none_at: None,
            on_trial: false,
            now: Duration::ZERO,
            packet_bytes: 0,
        }
    }

    /// Whether the next packet is one to compare choices on; if so, nobody else compares before the
    /// results are in.
    pub(crate) fn begin_comparison(&mut self, now: Duration) -> bool {
        let begin = !self.is_comparing && self.is_comparison_due(now);
        self.is_comparing |= begin;
        begin
    }

    fn is_comparison_due(&self, now: Duration) -> bool {
        if self.comparisons < FIRST_COMPARISONS {
            return true;
        }
        if self.on_trial {
            return false;
        }
        let since = now.saturating_sub(self.compared_at);
        // What the last one took is to be made up for; an idle time before it does not count.
        let share = self.comparing.as_secs_f64() / (since.as_secs_f64() * self.parallel);
        share < COMPARING && since >= COMPARE_EVERY
    }

    /// The choices a comparison goes through, in order.
    pub(crate) fn candidates(&self) -> std::ops::Range<usize> {
        self.reference..self.choices.len()
    }

    /// Whether a level still more thorough than the last one measured could be better.
    pub(crate) fn goes_on(&self, guest_bytes: usize, last: Measured) -> bool {
        let Some(link) = self.link else { return false };
        let (guest, computing) = (guest_bytes as f64, last.computing.as_secs_f64());
        let by_computing = self.parallel * guest / computing.max(1e-9);
        let by_link = link * guest / last.wire_bytes.max(1) as f64;
        by_computing > by_link
    }

    /// Takes the results of a comparison: all on the same packet, the reference first.
    pub(crate) fn compared(&mut self, now: Duration, guest_bytes: usize, results: &[Measured]) {
        self.comparisons += 1;
        self.compared_at = now;
        self.now = now;
        self.window.has_comparison = true;
        self.is_comparing = false;
        let Some(first) = results.first() else { return };
        let reference = (
            first.computing.as_secs_f64().max(1e-9),
            first.wire_bytes as f64,
        );
        let fresh = (
            reference.0 / guest_bytes.max(1) as f64,
            reference.1 / guest_bytes.max(1) as f64,
        );
        self.cost = Some(match self.cost {
            Some(old) => (kept(old.0, fresh.0), kept(old.1, fresh.1)),
            None => fresh,
        });
        self.comparing = results.iter().map(|result| result.computing).sum();
        for result in results {
            if let Some(choice) = self.choices.get_mut(result.choice) {
                let own = (result.computing.as_secs_f64(), result.wire_bytes as f64);
                choice.own = (KEPT * choice.own.0 + own.0, KEPT * choice.own.1 + own.1);
                choice.reference = (
                    KEPT * choice.reference.0 + reference.0,
                    KEPT * choice.reference.1 + reference.1,
                );
            }
        }
        if !self.on_trial {
            self.decide();
        }
    }

    /// Seconds of computing and wire bytes for each guest byte; `None` if the choice has never been
    /// compared.
    pub(crate) fn costs(&self, choice: &Choice) -> Option<(f64, f64)> {
        if choice.level.is_none() {
            return Some((0.0, 1.0));
        }
        let (seconds, bytes) = self.cost?;
        if choice.reference.0 <= 0.0 || choice.reference.1 <= 0.0 {
            return None;
        }
        Some((
            seconds * choice.own.0 / choice.reference.0,
            bytes * choice.own.1 / choice.reference.1,
        ))
    }

    /// Guest bytes a second to expect of a choice: what it was seen to come to, or what the model
    /// says of it.
    ///
    /// The model knows of no limit but the source's processors and the link. A receiver that takes
    /// out of zstd more slowly than the source puts in looks like a slow link to it, on which no
    /// compression would be slower still: only trying tells.
    pub(crate) fn expected(&self, index: usize) -> Option<f64> {
        let choice = self.choices.get(index)?;
        if let Some((speed, _)) = self.fresh(choice) {
            return Some(speed);
        }
        let speed = self.speed(index)?;
        // What holds one level back holds back its neighbours.
        let levels = (self.choices.iter().enumerate())
            .filter(|(_, other)| other.level.is_some() && choice.level.is_some());
        let latest = levels
            .filter_map(|(at, other)| Some((at, self.fresh(other)?)))
            .max_by_key(|(_, (_, when))| *when);
        let trust = latest.and_then(|(at, (seen, _))| Some(seen / self.speed(at)?));
        Some(speed * trust.unwrap_or(1.0).min(1.0))
    }

    fn fresh(&self, choice: &Choice) -> Option<(f64, Duration)> {
        choice
            .seen
            .filter(|(_, when)| self.now.saturating_sub(*when) < FRESH)
    }

    /// Guest bytes a second by the model: as fast as a choice computes, or as the link takes what
    /// it makes.
    fn speed(&self, index: usize) -> Option<f64> {
        let (seconds, bytes) = self.costs(self.choices.get(index)?)?;
        let by_link = self
            .link
            .map_or(f64::INFINITY, |link| link / bytes.max(1e-6));
        let by_computing = if seconds > 0.0 {
            self.parallel / seconds
        } else {
            f64::INFINITY
        };
        Some(by_link.min(by_computing))
    }

    /// Guest bytes a second of the quickest level, if the link were no limit.
    fn fastest_computing(&self) -> f64 {
        let levels = self.choices.iter().filter(|choice| choice.level.is_some());
        let seconds = levels
            .filter_map(|choice| self.costs(choice))
            .map(|(seconds, _)| seconds);
        seconds.fold(0.0, |best, seconds| {
            f64::max(best, self.parallel / seconds.max(1e-12))
        })
    }

    fn decide(&mut self) {
        let Some(now) = self.expected(self.current) else {
            return;
        };
        if self.should_try_none() {
            return self.switch(0);
        }
        let mut best = (self.current, now * MARGIN);
        for index in 0..self.choices.len() {
            // Nothing is known of the link before the first window has ended: no reason to go
            // without compression.
            let blind =
                self.windows == 0 && self.choices.get(index).is_some_and(|c| c.level.is_none());
            if let Some(speed) = self.expected(index).filter(|_| !blind)
                && speed > best.1
            {
                best = (index, speed);
            }
        }
        if best.0 != self.current {
            self.switch(best.0);
        }
    }

    /// Whether no compression is worth a try whatever the model says: once in a while, where that
    /// is over soon.
    fn should_try_none(&self) -> bool {
        let Some(none) = self.choices.first().filter(|choice| choice.level.is_none()) else {
            return false;
        };
        let bytes = self.packet_bytes as f64 * WINDOW_PACKETS as f64;
        let is_short = self
            .link
            .is_some_and(|link| self.windows > 0 && bytes <= link * WINDOW.as_secs_f64());
        let is_due = self
            .tried_none_at
            .is_none_or(|when| self.now.saturating_sub(when) >= FRESH);
        self.current != 0 && is_short && is_due && self.fresh(none).is_none()
    }

    fn switch(&mut self, to: usize) {
        if self
            .choices
            .get(to)
            .is_some_and(|choice| choice.level.is_none())
        {
            self.tried_none_at = Some(self.now);
        }
        self.current = to;
        self.on_trial = true;
        self.window = Window::settling(self.now);
    }

    /// A packet has been prepared by `choice`.
    pub(crate) fn prepared(&mut self, choice: usize, guest_bytes: usize, wire_bytes: usize) {
        if self.windows == 0 && self.window.guest_bytes == 0 {
            // Zero pages that went before say nothing of the link.
            self.window.restart(self.now);
        }
        self.window.guest_bytes += guest_bytes as u64;
        self.packet_bytes = self.packet_bytes.max(guest_bytes);
        if let Some(choice) = self.choices.get_mut(choice) {
            choice.packets += 1;
            choice.guest_bytes += guest_bytes as u64;
            choice.wire_bytes += wire_bytes as u64;
        }
    }

    /// A packet has been sent; `now` counts from the start of the transfer.
    pub(crate) fn sent(&mut self, now: Duration, channel: u8, wire_bytes: u64, sending: Duration) {
        self.now = now;
        self.window.sent(channel, wire_bytes, sending);
        // Where there must be zstd, nothing is known yet to choose instead.
        let ends_early = self.reference > 0;
        if self.window.is_over(now, self.windows == 0, ends_early) {
            self.end_window(now);
        }
    }

    /// The current choice was seen to move `speed` guest bytes a second.
    fn see(&mut self, speed: f64) {
        let old = self
            .choices
            .get(self.current)
            .and_then(|choice| self.fresh(choice));
        let speed = match old {
            // Far off: nothing that was seen is worth anything.
            Some((old, _)) if speed * 2.0 < old || old * 2.0 < speed => {
                self.choices
                    .iter_mut()
                    .for_each(|choice| choice.seen = None);
                speed
            }
            // One bad window is the machine's, not the choice's.
            Some((old, _)) => kept(old, speed),
            None => speed,
        };
        if let Some(choice) = self.choices.get_mut(self.current) {
            choice.seen = Some((speed, self.now));
        }
    }

    fn end_window(&mut self, now: Duration) {
        let window = std::mem::replace(&mut self.window, Window::new(now));
        if window.is_settling {
            return;
        }
        self.windows += 1;
        self.on_trial = false;
        let seconds = now.saturating_sub(window.start).as_secs_f64().max(1e-6);
        let waiting = window.waiting(now);
        let rate = window.wire_bytes as f64 / seconds;
        // As much as the link was last seen to take: it is the limit, though buffers, or a busy
        // machine, hide the waiting.
        let at_limit = (0.85..1.15).contains(&(rate / self.measured.max(1.0)));
        if waiting >= WAITING || at_limit {
            if waiting >= WAITING {
                self.measured = rate;
            }
            self.quiet = 0;
            if !window.has_comparison {
                self.see(window.guest_bytes as f64 / seconds);
            }
            if std::mem::take(&mut self.tried_faster)
                && self.link.is_some_and(|link| rate < link * 0.8)
            {
                // It was not faster after all: be slower to believe it the next time.
                self.patience = (self.patience * 2).min(64);
            }
            self.link = Some(match self.link {
                // Far off: what was believed of it is worth nothing.
                Some(link) if link < 2.0 * rate && rate < 2.0 * link => f64::midpoint(link, rate),
                _ => rate,
            });
        } else {
            // The link has room: it takes at least this much, and how much more is not known.
            if let Some((cost, _)) = self.choices.get(self.current).and_then(|c| self.costs(c)) {
                let seen = window.guest_bytes as f64 / seconds * cost;
                // Far less than there could be: the source had little to send.
                if seen >= self.parallel / 2.0 {
                    self.parallel =
                        f64::midpoint(self.parallel, seen).clamp(0.5, self.most_parallel);
                }
            }
            self.quiet += 1;
            // Beyond this it makes no difference: what compresses least is the choice then.
            let enough = 2.0 * self.fastest_computing();
            if let Some(link) = &mut self.link {
                *link = link.max(rate);
                if self.quiet >= self.patience && *link < enough {
                    *link *= 1.5;
                    self.quiet = 0;
                    self.tried_faster = true;
                }
            }
        }
        self.decide();
    }

    /// One more thread compresses, up to as many as there are processors.
    pub(crate) fn add_thread(&mut self, processors: f64) {
        self.most_parallel = (self.most_parallel + 1.0).min(processors);
        self.parallel = self.most_parallel;
    }
}

#[cfg(test)]
mod tests;
