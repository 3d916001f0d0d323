/**
 * A text that grows by small pieces. A piece that was cut out of something keeps all of that in memory as long as it is
 * kept itself, so pieces become one string of their own from time to time.
 */

const piecesMax = 64;

export class GrowingText {
  private whole = "";
  private pieces: string[] = [];

  add(piece: string): void {
    if (this.pieces.push(piece) === piecesMax) this.join();
  }

  get isEmpty(): boolean {
    return this.whole === "" && this.pieces.every((piece) => piece === "");
  }

  toString(): string {
    if (this.pieces.length > 0) this.join();
    return this.whole;
  }

  private join(): void {
    this.whole += this.pieces.join("");
    this.pieces = [];
  }
}
