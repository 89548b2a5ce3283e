// Masks: as they come from the server (base64 of zlib of bits, x fastest, lowest bit first), and as they are kept.

import { unzlibSync } from "fflate";

/** One bit a voxel, in the scan's own order: x fastest, then y, then z. */
export class BitMask {
  private readonly words: Uint32Array; // one more than needed, so that 32 bits can be read from the last voxel on

  constructor(voxels: number) {
    this.words = new Uint32Array(Math.ceil(voxels / 32) + 1);
  }

  static of(packed: Uint8Array): BitMask {
    const mask = new BitMask(packed.length * 8);
    new Uint8Array(mask.words.buffer).set(packed);
    return mask;
  }

  get(at: number): boolean {
    return ((this.words[at >>> 5] >>> (at & 31)) & 1) === 1;
  }

  flip(at: number): void {
    this.words[at >>> 5] ^= 1 << (at & 31);
  }

  clear(): void {
    this.words.fill(0);
  }

  /** In which of `count` bits (at most 32) from a place on another mask, from its own place on, differs. */
  difference(at: number, other: BitMask, otherAt: number, count: number): number {
    const differ = this.from(at) ^ other.from(otherAt);
    return count < 32 ? differ & ((1 << count) - 1) : differ;
  }

  private from(at: number): number {
    const [word, shift] = [at >>> 5, at & 31];
    return shift ? (this.words[word] >>> shift) | (this.words[word + 1] << (32 - shift)) : this.words[word];
  }
}

export function unpackBits(text: string): BitMask {
  return BitMask.of(unzipped(text));
}

/** The bytes of base64 of zlib. Done at once: the browser's own decompression would wait for its turn several times. */
export function unzipped(text: string): Uint8Array {
  const characters = atob(text);
  const packed = new Uint8Array(characters.length);
  for (let k = 0; k < packed.length; k++) packed[k] = characters.charCodeAt(k);
  return unzlibSync(packed);
}
