//! How many free frames are few.

/// The watermarks, in frames.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Watermarks {
    /// Frames that only a page whose coming frees another may take.
    pub reserve: u64,
    /// Below this the background reclaimer wakes.
    pub low: u64,
    /// Up to this it works.
    pub high: u64,
}

impl Watermarks {
    /// The watermarks of a memory of `frames` frames.
    ///
    /// The reserve grows with the square root, as what is in flight at one time does: 2 sqrt(frames) is 256 frames
    /// of 16,384 (64 MiB) and 2,896 of 2,097,152 (8 GiB). Low is half as much above it, high once more: a wake-up
    /// frees at least half a reserve, so that it pays for its two context switches.
    pub const fn of(frames: u64) -> Self {
        let reserve = 2 * frames.isqrt();
        // A tiny memory (in tests) keeps most of itself usable.
        let reserve = if reserve > frames / 16 { frames / 16 } else { reserve };
        let step = reserve / 2 + 1;
        Self { reserve, low: reserve + step, high: reserve + 2 * step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_ascend_and_leave_most_of_memory() {
        for frames in [64, 1024, 16_384, 32_768, 2_097_152] {
            let marks = Watermarks::of(frames);
            assert!(marks.reserve < marks.low && marks.low < marks.high, "{marks:?}");
            assert!(marks.high < frames / 4, "{marks:?} of {frames}");
        }
        assert_eq!(Watermarks::of(16_384).reserve, 256);
    }
}
