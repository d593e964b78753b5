//! The straight line that points lie along.

use serde::Serialize;

/// What something takes at the start, what each unit takes, and how well that describes it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Straight {
    pub(crate) who: &'static str,
    /// Seconds.
    pub(crate) start: f64,
    /// Seconds for each unit.
    pub(crate) slope: f64,
    /// How far the furthest point is from the line, as a share of what the line says.
    pub(crate) off: f64,
}

impl Straight {
    /// The line with the smallest squares of the distances, each as a share of the point's own
    /// seconds; of two points at least, at different places.
    pub(crate) fn along(who: &'static str, points: &[(f64, f64)]) -> Option<Self> {
        let (mut xx, mut xy, mut yy, mut x, mut y) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (at, seconds) in points {
            // The line would be start / seconds + slope * at / seconds = 1.
            let (one, each) = (1.0 / seconds, at / seconds);
            xx += one * one;
            xy += one * each;
            yy += each * each;
            x += one;
            y += each;
        }
        let determinant = xx * yy - xy * xy;
        let (start, slope) = (
            (x * yy - y * xy) / determinant,
            (y * xx - x * xy) / determinant,
        );
        let off = points
            .iter()
            .map(|(at, seconds)| (seconds / (start + slope * at) - 1.0).abs())
            .fold(0.0, f64::max);
        (start.is_finite() && slope.is_finite()).then_some(Self {
            who,
            start,
            slope,
            off,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_what_is_not_on_it() {
        let points = |times: [f64; 3]| [(1.0, times[0]), (2.0, times[1]), (8.0, times[2])];
        let exact = Straight::along("a", &points([3.0, 5.0, 17.0])).unwrap();
        assert!((exact.start - 1.0).abs() < 1e-9 && (exact.slope - 2.0).abs() < 1e-9);
        assert!(exact.off < 1e-9);
        // Squares, as in what grows faster than it should.
        let bent = Straight::along("a", &points([1.0, 4.0, 64.0])).unwrap();
        assert!(bent.off > 0.3, "{bent:?}");
    }

    #[test]
    fn there_is_no_line_through_one_place() {
        assert_eq!(Straight::along("a", &[(4.0, 1.0)]), None);
        assert_eq!(Straight::along("a", &[(4.0, 1.0), (4.0, 1.0)]), None);
        assert_eq!(Straight::along("a", &[]), None);
    }
}
