//! Tells pages that deflate would not make smaller from others, for a small part of what trying
//! would take.

/// Every so many bytes one is counted: no divisor of a word's length, so that every place in a word
/// is looked at.
const STRIDE: usize = 3;
/// Words that are remembered, each in the one place its value leads to.
const PLACES: usize = 4096;
/// So many words that came before, of the 1024 of a page, may be worth a try.
const REPEATED: usize = 8;

/// Looks at one page after another of a stream.
pub(crate) struct Sieve {
    counts: [u16; 256],
    words: Box<[u32; PLACES]>,
}

impl Sieve {
    pub(crate) fn new() -> Self {
        Self {
            counts: [0; 256],
            words: Box::new([0; PLACES]),
        }
    }

    /// Whether `page` is as random as what is encrypted or compressed already: all byte values
    /// about as frequent, and next to no word of it, at a multiple of four, among those of the page
    /// itself or of others like it shortly before.
    pub(crate) fn is_incompressible(&mut self, page: &[u8]) -> bool {
        self.has_even_counts(page) && !self.repeats(page)
    }

    /// For n random bytes the sum of the squares of the 256 counts comes to n + n²/256 on average.
    /// With the 1366 of a page that is 8655, give or take 121; a tenth more is allowed.
    fn has_even_counts(&mut self, page: &[u8]) -> bool {
        self.counts.fill(0);
        let mut count = 0;
        for byte in page.iter().step_by(STRIDE) {
            if let Some(seen) = self.counts.get_mut(usize::from(*byte)) {
                *seen = seen.saturating_add(1);
            }
            count += 1;
        }
        let squares: u64 = self.counts.iter().map(|&seen| u64::from(seen).pow(2)).sum();
        let expected = count + count * count / 256;
        squares * 10 <= expected * 11
    }

    fn repeats(&mut self, page: &[u8]) -> bool {
        let (words, _) = page.as_chunks::<4>();
        let mut repeated = 0;
        for word in words {
            let word = u32::from_le_bytes(*word);
            let place = (word.wrapping_mul(0x9e37_79b1) >> 20) as usize;
            if let Some(kept) = self.words.get_mut(place) {
                repeated += usize::from(*kept == word);
                *kept = word;
            }
        }
        repeated >= REPEATED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut page = Vec::new();
        for _ in 0..512 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            page.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        page
    }

    #[test]
    fn random_pages_are_incompressible() {
        let mut sieve = Sieve::new();
        let found = (0..1000).filter(|&seed| sieve.is_incompressible(&random(seed)));
        assert_eq!(found.count(), 1000);
    }

    #[test]
    fn pages_with_something_to_gain_are_not() {
        let mut sieve = Sieve::new();
        let text: Vec<u8> = (0..4096_u32).map(|n| b"multifd "[n as usize % 8]).collect();
        assert!(!sieve.is_incompressible(&text), "text");
        let ramp: Vec<u8> = (0..4096_u32).map(|n| (n % 256) as u8).collect();
        assert!(
            !sieve.is_incompressible(&ramp),
            "all values, in the same order again and again"
        );
        let twice = [&random(1)[..2048], &random(1)[..2048]].concat();
        assert!(
            !sieve.is_incompressible(&twice),
            "a half that repeats the other"
        );
        let mut mostly = random(2);
        mostly[..1024].fill(7);
        assert!(!sieve.is_incompressible(&mostly), "a quarter of one value");
        let ascii: Vec<u8> = random(3).iter().map(|byte| byte & 0x7f).collect();
        assert!(!sieve.is_incompressible(&ascii), "seven bits");
        let wide: Vec<u8> = random(5)
            .chunks(4)
            .flat_map(|word| [word[0], word[1], word[2], 0])
            .collect();
        assert!(!sieve.is_incompressible(&wide), "24 bits in words of 32");
        let numbers = random(6);
        let numbers = numbers
            .chunks(8)
            .map(|word| f64::from(word[0]) / f64::from(word[1].max(1)));
        let floats: Vec<u8> = numbers.flat_map(f64::to_le_bytes).collect();
        assert!(!sieve.is_incompressible(&floats), "floating-point numbers");
        let page = random(4);
        assert!(sieve.is_incompressible(&page));
        assert!(!sieve.is_incompressible(&page), "a page that came before");
    }
}
