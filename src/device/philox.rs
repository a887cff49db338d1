//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). A draw is a pure function of its key, so results do not depend on batch size, order, thread
//! count or number of processes. Normal numbers are made by [`ops::noise`](crate::ops::noise).

/// What a stream of numbers is for; part of the key, so that no two uses share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The latent that a rollout starts from.
    InitialLatent = 1,
    /// The noise that a training point is made with.
    ForwardNoise = 2,
    /// The time of a training point.
    Timestep = 3,
    /// Which prompts an epoch trains on, and in which order.
    PromptOrder = 4,
    /// Initial LoRA factors.
    LoraInit = 5,
    /// Noise added inside a stochastic sampler.
    SamplerNoise = 6,
    /// Which steps of its rollouts an epoch trains on.
    Window = 7,
    /// In which order an epoch's images are trained on.
    PointOrder = 8,
    /// The noise with which an image leaves its trunk.
    ForkNoise = 9,
}

/// The key of one stream: which run, which use, which draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The run's seed.
    pub seed: u64,
    /// The use.
    pub purpose: Purpose,
    /// Training epoch, 0 outside training.
    pub epoch: u32,
    /// Prompt or tensor number.
    pub prompt: u32,
    /// Repeat of the prompt.
    pub repeat: u32,
    /// Sampler step or noising number.
    pub step: u32,
}

impl Key {
    /// A key with everything but seed and purpose zero.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        Self { seed, purpose, epoch: 0, prompt: 0, repeat: 0, step: 0 }
    }

    /// The stream's Philox key and the upper half of its counter, two words each: all that a kernel needs to know.
    pub fn words(self) -> [u32; 4] {
        // The key's fields are mixed into the 64-bit Philox key by running the cipher once over them, which
        // leaves the lower half of the counter to the position within the stream.
        let a = philox([self.epoch, self.prompt, self.repeat, self.step], [self.seed as u32, (self.seed >> 32) as u32]);
        philox([a[2], a[3], self.purpose as u32, 0x656e_6769], [a[0], a[1]])
    }

    /// The stream's numbers, from the first.
    pub fn stream(self) -> Stream {
        Stream { words: self.words(), block: 0, left: [0; 4], used: 4 }
    }
}

/// Block `index` of the stream with these [`Key::words`].
#[inline(always)]
pub fn block(words: [u32; 4], index: u64) -> [u32; 4] {
    philox([index as u32, (index >> 32) as u32, words[2], words[3]], [words[0], words[1]])
}

/// A position in a stream of random numbers.
pub struct Stream {
    words: [u32; 4],
    block: u64,
    left: [u32; 4],
    used: usize,
}

impl Stream {
    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.left = block(self.words, self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.left[self.used - 1]
    }

    /// Uniform on (0, 1): never 0 and never 1.
    pub fn uniform(&mut self) -> f32 {
        ((self.next_u32() >> 8) | 1) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform on `0..n` without bias.
    pub fn below(&mut self, n: u32) -> u32 {
        let limit = u32::MAX - u32::MAX % n;
        loop {
            let x = self.next_u32();
            if x < limit {
                return x % n;
            }
        }
    }

    /// Shuffles `items` (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

/// One block of Philox4x32 with ten rounds.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_published_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_field_of_the_key_changes_the_stream() {
        let base = Key { seed: 1, purpose: Purpose::Timestep, epoch: 2, prompt: 3, repeat: 4, step: 5 };
        let variants = [
            Key { seed: 2, ..base },
            Key { seed: 1 << 40, ..base },
            Key { purpose: Purpose::ForwardNoise, ..base },
            Key { epoch: 3, ..base },
            Key { prompt: 4, ..base },
            Key { repeat: 5, ..base },
            Key { step: 6, ..base },
        ];
        let first = |k: Key| k.stream().next_u32();
        for v in variants {
            assert_ne!(first(v), first(base), "{v:?}");
        }
    }
}
