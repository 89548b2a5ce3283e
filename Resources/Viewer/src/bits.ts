// Masks: as they come from the server (base64 of zlib of bits, x fastest, lowest bit first), and as they are kept.

export async function unpackBits(text: string): Promise<Uint8Array> {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const unzipped = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(unzipped).arrayBuffer());
}

/** One bit for each voxel of the displayed image. */
export class BitMask {
  private readonly words: Uint32Array;

  constructor(voxels: number) {
    this.words = new Uint32Array(Math.ceil(voxels / 32));
  }

  get(index: number): boolean {
    return ((this.words[index >>> 5] >>> (index & 31)) & 1) === 1;
  }

  set(index: number, value: boolean): void {
    if (value) this.words[index >>> 5] |= 1 << (index & 31);
    else this.words[index >>> 5] &= ~(1 << (index & 31));
  }

  clear(): void {
    this.words.fill(0);
  }
}
