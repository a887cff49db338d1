//! Normal numbers from Philox, bit for bit (the engine's definition): the processor's side of the kernels in `step.ptx`.

const LN: [u32; 8] =
    [0x3EAA_AAAA, 0xBE80_0114, 0x3E4C_D004, 0xBE2A_3922, 0x3E11_6D11, 0xBE06_C2A9, 0x3E02_ADA3, 0xBD9C_5A66];
const SIN: [u32; 4] = [0x3FC9_0FDB, 0xBF25_5DDD, 0x3DA3_2F63, 0xBB96_CDDC];
const COS: [u32; 4] = [0xBF9D_E9E6, 0x3E81_E0EF, 0xBCAA_E2F0, 0x3A6C_EABE];
const LN2: [f32; 2] = [355.0 / 512.0, f32::from_bits(0xB95E_8083)];

fn polynomial<const N: usize>(c: &[u32; N], x: f32) -> f32 {
    c[..N - 1].iter().rev().fold(f32::from_bits(c[N - 1]), |p, &k| p * x + f32::from_bits(k))
}

/// `-2 ln(b / 2^24)` for odd `b < 2^24`.
fn minus_2_ln(b: u32) -> f32 {
    let u = (b as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let e = (u.wrapping_sub(0x3F35_04F3) as i32) >> 23;
    let f = f32::from_bits(u.wrapping_sub((e as u32) << 23)) - 1.0;
    let (s, k) = (f * f, e as f32);
    let mut y = f * (s * polynomial(&LN, f));
    y += k * LN2[1];
    y -= 0.5 * s;
    y += f;
    -2.0 * (y + k * LN2[0])
}

/// Cosine and sine of `2 pi b / 2^24`.
fn cos_sin(b: u32) -> (f32, f32) {
    let q = (b + (1 << 21)) >> 22;
    let r = b.wrapping_sub(q << 22) as i32 as f32 * f32::from_bits(0x3480_0000);
    let z = r * r;
    let (s, c) = (r * polynomial(&SIN, z), 1.0 + z * polynomial(&COS, z));
    let (x, y) = if q & 1 == 1 { (s, c) } else { (c, s) };
    (f32::from_bits(x.to_bits() ^ (((q + 1) >> 1 & 1) << 31)), f32::from_bits(y.to_bits() ^ ((q >> 1 & 1) << 31)))
}

fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The first `n` normals under a key and a salt.
pub fn normals(key: [u32; 4], n: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for i in 0..n.div_ceil(4) as u64 {
        let x = philox([i as u32, (i >> 32) as u32, key[2], key[3]], [key[0], key[1]]);
        for p in [0, 2] {
            let r = minus_2_ln(x[p] >> 8 | 1).sqrt();
            let (c, s) = cos_sin(x[p + 1] >> 8 | 1);
            out.extend([r * c, r * s]);
        }
    }
    out.truncate(n);
    out
}

#[test]
fn the_first_normals_are_those_of_the_definition() {
    let got = normals([0x623A_A92D, 0xEC9F_0537, 0xBB54_C43B, 0xFEA6_ABCA], 8);
    let want =
        [0x3F4A_64EDu32, 0xBE44_6697, 0xBF05_1BD8, 0xBEB3_9C1D, 0xBFA6_6245, 0x3E94_C3B0, 0xC002_30D2, 0xBF96_708F];
    assert_eq!(got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), want);
}
