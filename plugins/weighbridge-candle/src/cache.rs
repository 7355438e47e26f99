//! Keys and values of one sequence.

use crate::ops::LANES;

/// Positions by which a cache grows: growth copies, so not one by one. A multiple of [`LANES`].
const STEP: usize = 256;

/// What one position needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) n_layers: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl CacheShape {
    /// Bytes of one position.
    pub(crate) fn n_bytes(self) -> usize {
        let width = self.head_dim + self.value_width();
        self.n_layers * self.n_kv_heads * width * size_of::<f32>()
    }

    /// Width of a value: whole tiles.
    pub(crate) fn value_width(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

/// Keys and values of all layers of one sequence. Grows in steps, shrinks when it is cut.
#[derive(Debug)]
pub(crate) struct Cache {
    shape: CacheShape,
    layers: Vec<LayerCache>,
    len: usize,
}

/// Keys and values of one layer. Keys lie in blocks of positions, so that the scores of a block are
/// sums over its rows, and values are filled up to whole tiles.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<Vec<f32>>, // (n_kv_heads, n_blocks, head_dim, LANES)
    pub(crate) values: Vec<Vec<f32>>, // (n_kv_heads, n_positions, value_width)
    shape: CacheShape,
}

impl LayerCache {
    /// Writes key and value of a position that there is room for.
    pub(crate) fn set(&mut self, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let CacheShape { head_dim, .. } = self.shape;
        let block = position / LANES * head_dim * LANES;
        let rows = self.keys[head][block..].chunks_exact_mut(LANES);
        for (row, key) in rows.zip(key) {
            row[position % LANES] = *key;
        }
        let start = position * self.shape.value_width();
        self.values[head][start..start + head_dim].copy_from_slice(value);
    }

    /// Sets the number of positions there is room for; grows in steps.
    fn resize(&mut self, n_positions: usize) {
        let (head_dim, value_width) = (self.shape.head_dim, self.shape.value_width());
        let n_key_positions = n_positions.next_multiple_of(LANES);
        for keys in &mut self.keys {
            fit(keys, n_key_positions * head_dim, STEP * head_dim);
        }
        for values in &mut self.values {
            fit(values, n_positions * value_width, STEP * value_width);
        }
    }
}

/// Sets a length, with a capacity that is a multiple of `step`; gives back what would stay unused.
fn fit(rows: &mut Vec<f32>, len: usize, step: usize) {
    let n_wanted = len.next_multiple_of(step);
    rows.truncate(len);
    if rows.capacity() > n_wanted + step {
        rows.shrink_to(n_wanted);
    }
    if rows.capacity() < len {
        rows.reserve_exact(n_wanted - rows.len());
    }
    rows.resize(len, 0.0);
}

impl Cache {
    /// An empty one, which holds no memory.
    pub(crate) fn new(shape: CacheShape) -> Self {
        Self { shape, layers: Vec::new(), len: 0 }
    }

    /// Positions that are filled in all layers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Declares that all layers were filled up to `len`.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// A layer with room for `n_new` positions after the filled ones.
    pub(crate) fn layer(&mut self, layer_idx: usize, n_new: usize) -> &mut LayerCache {
        let shape = self.shape;
        if self.layers.is_empty() {
            let rows = || vec![Vec::new(); shape.n_kv_heads];
            self.layers.resize_with(shape.n_layers, || LayerCache {
                keys: rows(),
                values: rows(),
                shape,
            });
        }
        let layer = &mut self.layers[layer_idx];
        layer.resize(self.len + n_new);
        layer
    }

    /// Forgets the positions from `len` on, and gives memory back that would stay unused.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len == 0 {
            // Also what a feed that failed has begun.
            (self.len, self.layers) = (0, Vec::new());
        }
        if len >= self.len {
            return;
        }
        self.len = len;
        for layer in &mut self.layers {
            layer.resize(len);
        }
    }

    /// A copy of the first `len` positions.
    pub(crate) fn fork(&self, len: usize) -> Self {
        let len = len.min(self.len);
        if len == 0 {
            return Self::new(self.shape);
        }
        let copy = |rows: &Vec<f32>, len: usize, step: usize| {
            let mut copy = Vec::with_capacity(len.next_multiple_of(step));
            copy.extend_from_slice(&rows[..len]);
            copy
        };
        let (head_dim, width) = (self.shape.head_dim, self.shape.value_width());
        let n_keys = len.next_multiple_of(LANES) * head_dim;
        let keys = |rows: &Vec<f32>| copy(rows, n_keys, STEP * head_dim);
        let values = |rows: &Vec<f32>| copy(rows, len * width, STEP * width);
        let layers = self.layers.iter().map(|layer| LayerCache {
            keys: layer.keys.iter().map(keys).collect(),
            values: layer.values.iter().map(values).collect(),
            shape: self.shape,
        });
        Self { shape: self.shape, layers: layers.collect(), len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_bytes(cache: &Cache) -> usize {
        let rows = cache.layers.iter().flat_map(|layer| layer.keys.iter().chain(&layer.values));
        rows.map(|rows| rows.capacity() * size_of::<f32>()).sum()
    }

    fn fill(cache: &mut Cache, n_new: usize) {
        let shape = cache.shape;
        for layer_idx in 0..shape.n_layers {
            cache.layer(layer_idx, n_new);
        }
        cache.set_len(cache.len() + n_new);
    }

    #[test]
    fn memory_follows_the_length_in_steps() {
        let shape = CacheShape { n_layers: 2, n_kv_heads: 3, head_dim: 4 };
        let mut cache = Cache::new(shape);
        assert_eq!(n_bytes(&cache), 0);
        fill(&mut cache, 1);
        assert_eq!(n_bytes(&cache), STEP * shape.n_bytes());
        fill(&mut cache, 3 * STEP);
        assert_eq!(n_bytes(&cache), 4 * STEP * shape.n_bytes());
        let fork = cache.fork(10);
        assert_eq!((fork.len(), n_bytes(&fork)), (10, STEP * shape.n_bytes()));
        cache.truncate(5);
        assert_eq!((cache.len(), n_bytes(&cache)), (5, STEP * shape.n_bytes()));
        cache.truncate(9);
        assert_eq!(cache.len(), 5);
        cache.truncate(0);
        assert_eq!(n_bytes(&cache), 0);
    }

    #[test]
    fn keys_lie_across_and_values_along() {
        let shape = CacheShape { n_layers: 1, n_kv_heads: 2, head_dim: 3 };
        let mut cache = Cache::new(shape);
        let layer = cache.layer(0, 20);
        layer.set(1, 17, &[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
        assert_eq!(layer.keys[1].len(), 2 * 3 * LANES);
        let at = |row: usize| (3 + row) * LANES + 1;
        assert_eq!([0, 1, 2].map(|row| layer.keys[1][at(row)]), [1.0, 2.0, 3.0]);
        assert_eq!(layer.values[1][17 * LANES..][..4], [4.0, 5.0, 6.0, 0.0]);
        cache.set_len(20);
        let fork = cache.fork(18);
        assert_eq!(fork.layers[0].keys[1][at(2)], 3.0);
        assert_eq!(fork.layers[0].values[1].len(), 18 * LANES);
    }
}
